"""How fast the parts are that no cell measures, by pytest-benchmark. Run by hand, on a quiet machine.

Images are random: nothing here depends on what they show.
"""
