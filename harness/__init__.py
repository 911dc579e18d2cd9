"""HOW WELL: the only layer that knows clocks, devices, processes and files."""

import sys

if sys.argv[:1] == ["-m"]:  # ``python -m harness.…`` looks for its module: nothing of ours has run yet
    from harness.startup import begin

    begin()
