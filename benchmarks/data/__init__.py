"""Data sets on disk and how they are read: published sets, image folders, the cache of what was decoded."""
