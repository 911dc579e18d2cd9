"""Are the clock and the meters right? A workload of known duration and known memory, measured as a cell is.

    python -m harness.measure.check

To be run by hand, on a machine with nothing else to do. It prints what was to be expected, what was measured, and how
far apart they are; the exit status is 1 if anything is off by more than 5 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.errors import UserError
from harness import devices
from harness.command_line import Parser, command, end
from harness.measure.clock import Clock
from harness.measure.memory import MemoryMeter
from harness.records.provenance import device_name
from harness.records.record import Memory

STEPS, STEP_SECONDS = 3, 1.0
KEPT, PASSING = 128 * 2**20, 256 * 2**20
"""Bytes that the workload keeps, and those that every step takes and gives back."""
TOLERANCE = 0.05
MIB = 2**20


def measure(device: torch.device) -> tuple[float, float, Memory]:
    """The seconds that the steps took by another timer and by our clock, and the memory."""
    clock, meter = Clock(device), MemoryMeter(device)
    meter.context()
    torch.ones(8, device=device).cos_()  # the kernels are loaded now
    meter.idle()
    kept = torch.ones(KEPT // 4, device=device)
    meter.start()
    begin = clock.read()
    expected = _on_cpu() if device.type == "cpu" else _on_gpu(device)
    seconds = clock.read() - begin
    memory = meter.stop()
    del kept
    return expected(), seconds, memory


def _on_cpu() -> Callable[[], float]:
    """Steps that end at set times. Raises UserError where the machine is too busy for that."""
    begin = time.monotonic()
    for step in range(1, STEPS + 1):
        passing = torch.ones(PASSING // 4)
        if (left := begin + step * STEP_SECONDS - time.monotonic()) < 0:
            raise UserError("the machine is too busy: a step took longer than it should; stop the other work first")
        time.sleep(left)
        del passing
    return lambda: STEPS * STEP_SECONDS


def _on_gpu(device: torch.device) -> Callable[[], float]:
    """Steps that the GPU's own timer times. They are only queued here: a clock that does not wait would miss them."""
    start, end = (torch.get_device_module(device).Event(enable_timing=True) for _ in range(2))
    with torch.accelerator.device_index(device.index):
        start.record()
        for _ in range(STEPS):
            passing = torch.ones(PASSING // 4, device=device)
            for _ in range(500):
                passing.cos_()
            del passing
        end.record()
    return lambda: start.elapsed_time(end) / 1000


def rows(expected_seconds: float, seconds: float, memory: Memory) -> list[tuple[str, float, float]]:
    """(What, expected, measured) of everything that was measured."""
    duration = [("duration (s)", expected_seconds, seconds)]
    peaks = {
        "peak GPU memory, NVML (MiB)": memory["device_bytes"],
        "peak GPU memory, allocated by torch (MiB)": memory["allocated_bytes"],
        "peak GPU memory, reserved by torch (MiB)": memory["reserved_bytes"],
    }
    if memory["meter"] == "host_rss":
        peaks = {"peak host RSS above baseline (MiB)": memory["host_rss_bytes"]}
    return duration + [(what, (KEPT + PASSING) / MIB, peak / MIB) for what, peak in peaks.items() if peak is not None]


@command("python -m harness.measure.check")
def main(arguments: Sequence[str], program: str) -> int:
    """Check clock and meters."""
    parser = Parser(prog=program, description="Check clock and meters.", allow_abbrev=False)
    parser.add_argument("--device", default=devices.find(None), help=devices.NAMES)
    device: str = parser.parse(arguments).device
    devices.check_name(device)
    expected, seconds, memory = measure(torch.device(devices.find(device)))
    print(f"{device_name(device)}, torch {torch.__version__}")
    print(f"{'':42}{'expected':>10}{'measured':>10}{'error':>9}")
    worst = 0.0
    for what, wanted, measured in rows(expected, seconds, memory):
        print(f"{what:42}{wanted:10.3f}{measured:10.3f}{100 * (measured / wanted - 1):+8.2f}%")
        worst = max(worst, abs(measured / wanted - 1))
    for line in (memory["missing"], memory["busy"]):
        if line:
            print(line)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    end(main())
