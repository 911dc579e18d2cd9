"""How fast the suite itself is: by pytest-benchmark, and against plain PyTorch. Run by hand, on a quiet machine.

Images are random: nothing here depends on what they show. The one place under ``benchmarks`` that may import the other
layers.
"""
