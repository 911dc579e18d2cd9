"""Rates of the parts that no cell measures, by pytest-benchmark. Run by hand, on a quiet machine.

Images are random: no rate depends on what they show.
"""
