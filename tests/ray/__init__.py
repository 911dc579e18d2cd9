"""Tests on a real Ray cluster of two nodes, on this machine: ``make test-ray``."""
