"""The clock and the memory meter: one of each for all methods."""
