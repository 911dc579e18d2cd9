"""The speed suites still run. What they say of this machine is nobody's concern here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_suites_run_and_print_rates() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/speed", "--tiny", "--quiet", "-p", "no:cacheprovider"]
    hurried = ["--benchmark-min-rounds=1", "--benchmark-max-time=0.001", "--benchmark-calibration-precision=1"]
    # A worker of pytest-xdist tells its children so, and they would time nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run([*command, *hurried], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rates = re.findall(r"^ *test_(\w+)\[.* +\S+ +\S+ (\w+)/s$", ran.stdout, re.MULTILINE)
    assert {"GFLOP"} == {unit for name, unit in rates if name == "convolutions"}
    assert {"images"} == {unit for name, unit in rates if name != "convolutions"}
