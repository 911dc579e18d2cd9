"""NVML without a GPU: a Python fake of ``pynvml``, and a stub of the driver's library under the real bindings.

Both understand the settings that ``nvml_stub.c`` lists, and every test that uses ``driver`` or ``old_driver`` runs with
both.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness import cell
from harness.measure import memory
from harness.measure.energy import EnergyMeter
from harness.measure.memory import MemoryMeter
from harness.measure.nvml import Gpu, driver_version
from tests.dummies import Dummy, dummy
from tests.test_cell import job, run

__all__ = ["dummy"]  # a fixture

MIB = 2**20
TOTAL, RESERVED = 1024 * MIB, 100 * MIB
LOST, NOT_LOADED, NOT_SUPPORTED = 15, 9, 3


class Driver:
    """The state of the made-up driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: dict[str, int] = {}
        for device in (0, 1, 10, 11):
            self.set(**{f"total.{device}": TOTAL, f"reserved.{device}": RESERVED})
            self.use(device, 0)

    def set(self, **settings: int) -> None:
        """Change settings; the library sees all of them at once."""
        self.settings |= settings
        text = "".join(f"{name} {value}\n" for name, value in self.settings.items())
        self.path.with_suffix(".new").write_text(text)
        os.replace(self.path.with_suffix(".new"), self.path)

    def use(self, device: int, mebibytes: int) -> None:
        """Let so much be in use on ``device``, apart from what is reserved."""
        self.set(**{f"free.{device}": TOTAL - RESERVED - mebibytes * MIB})


def uuid(device: int) -> str:
    """As torch has it: without a prefix."""
    return f"0000000a-0000-0000-0000-{device:012d}"


class FakeError(Exception):
    """As the bindings raise."""


class Fake(ModuleType):
    """The functions of ``pynvml`` that the suite uses. A handle is the number of the device."""

    nvmlMemory_v2 = 2

    def __init__(self, driver: Driver, *, old: bool) -> None:
        super().__init__("pynvml")
        self._settings, self._old = driver.settings, old

    def _check(self, name: str, *, new: bool = False) -> None:
        if code := self._settings.get(f"error.{name}", self._settings.get("error", 0)):
            raise FakeError("GPU is lost" if code == LOST else f"NVML Error with code {code}")
        if new and self._old:
            raise FakeError("Function Not Found")

    def _of(self, handle: int, what: str) -> int:
        return self._settings.get(f"{what}.{handle}", 0)

    def nvmlInit(self) -> None:
        self._check("nvmlInitWithFlags")

    def nvmlSystemGetDriverVersion(self) -> str:
        self._check("nvmlSystemGetDriverVersion")
        return "999.1"

    def nvmlDeviceGetCount(self) -> int:
        self._check("nvmlDeviceGetCount_v2")
        return self._settings.get("gpus", 2)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check("nvmlDeviceGetHandleByIndex_v2")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        self._check("nvmlDeviceGetUUID")
        return f"{'GPU' if handle < 10 else 'MIG'}-{uuid(handle)}"

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        self._check("nvmlDeviceGetMaxMigDeviceCount")
        return 2 * self._of(handle, "instances")

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> int:
        self._check("nvmlDeviceGetMigDeviceHandleByIndex")
        if index % 2:
            raise FakeError("Not Found")
        return 10 * (handle + 1) + index // 2

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:
        self._check("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo", new=version is not None)
        found = {name: self._of(handle, name) for name in ("total", "free", "reserved")}
        return SimpleNamespace(**found, used=found["total"] - found["free"] - (found["reserved"] if version else 0))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:
        self._check("nvmlDeviceGetComputeRunningProcesses_v3")
        return [1000] * self._of(handle, "processes")

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        self._check("nvmlDeviceGetUtilizationRates", new=True)
        if handle >= 10:
            raise FakeError("Not Supported")
        return SimpleNamespace(gpu=self._of(handle, "busy"), memory=0)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self._check("nvmlDeviceGetTotalEnergyConsumption", new=True)
        if f"millijoules.{handle}" not in self._settings:
            raise FakeError("Not Supported")
        return self._settings[f"millijoules.{handle}"]


def build(folder: Path, *flags: str) -> Path:
    """Compile the stub under the name that the bindings load. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder.mkdir(exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        source = Path(__file__).with_name("nvml_stub.c")
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(library), str(source)]
        subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stubs are built, once."""
    return tmp_path_factory.mktemp("nvml")


def installed(kind: str, tmp_path: Path, libraries: Path, patch: pytest.MonkeyPatch, *, old: bool) -> Driver:
    driver = Driver(tmp_path / "settings")
    if kind == "fake":
        patch.setitem(sys.modules, "pynvml", Fake(driver, old=old))
    else:
        import pynvml

        library = build(libraries / ("old" if old else "new"), *(["-DOLD"] if old else []))
        patch.setenv("NVML_STUB", str(driver.path))
        patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return driver


@pytest.fixture(params=["fake", "stub"])
def driver(request: pytest.FixtureRequest, tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Two GPUs, of which nothing is in use."""
    return installed(request.param, tmp_path, libraries, monkeypatch, old=False)


@pytest.fixture(params=["fake", "stub"])
def old_driver(
    request: pytest.FixtureRequest, tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> Driver:
    """The same with a library that lacks the newer functions."""
    return installed(request.param, tmp_path, libraries, monkeypatch, old=True)


def found(device: int) -> Gpu:
    gpu = Gpu()
    gpu.find(uuid(device))
    return gpu


# Readings


def test_the_real_bindings_load_the_library_by_its_name(tmp_path: Path, libraries: Path) -> None:
    """In a process of its own, with nothing replaced but the search path."""
    driver = Driver(tmp_path / "settings")
    driver.use(1, 300)
    driver.set(**{"millijoules.1": 1500, "processes.1": 3})
    script = (
        "from harness.measure.nvml import Gpu, driver_version\n"
        f"gpu = Gpu(); gpu.find('{uuid(1)}')\n"
        "print(gpu.used(), gpu.joules(), gpu.processes(), gpu.missing, driver_version())"
    )
    folder = build(libraries / "new").parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "NVML_STUB": str(driver.path)}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == (f"{300 * MIB} 1.5 3 None 999.1\n", "")


def test_readings_are_of_the_device_with_the_uuid(driver: Driver) -> None:
    driver.use(0, 200)
    driver.set(**{"millijoules.0": 9000, "processes.0": 2, "millijoules.1": 1500, "processes.1": 0, "busy.1": 40})
    driver.use(1, 30)
    for name in (uuid(1), uuid(1).upper(), f"GPU-{uuid(1)}"):
        gpu = Gpu()
        gpu.find(name)
        assert (gpu.used(), gpu.joules(), gpu.processes(), gpu.missing) == (30 * MIB, 1.5, 0, None)
        assert gpu.device is not None and (gpu.device.used_bytes, gpu.device.busy_percent) == (30 * MIB, 40)
    driver.use(1, 70)
    assert gpu.used() == 70 * MIB
    driver.use(1, 10)
    assert gpu.used() == 10 * MIB
    assert driver_version() == "999.1"


def test_a_driver_without_the_newer_functions(old_driver: Driver) -> None:
    """What is reserved counts as used there, before as after."""
    old_driver.set(**{"millijoules.0": 9000})
    gpu = found(0)
    old_driver.use(0, 50)
    assert gpu.used() == 50 * MIB + RESERVED and gpu.missing is None and gpu.joules() is None
    assert gpu.device is not None and gpu.device.used_bytes == RESERVED and not gpu.device.tells_reserved


def test_an_instance_of_a_split_gpu_has_its_own_memory(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver.set(**{"instances.0": 2, "millijoules.0": 1000, "millijoules.11": 1000, "processes.11": 1})
    driver.use(0, 900)
    driver.use(11, 40)
    gpu = found(11)
    assert (gpu.used(), gpu.processes(), gpu.missing) == (40 * MIB, 1, None)
    assert gpu.joules() is None, "others share the counter"
    # An older CUDA has the UUID of the whole GPU.
    ambiguous = found(0)
    assert ambiguous.used() is None and "2 devices fit the UUID" in str(ambiguous.missing)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"MIG-{uuid(11)}")
    assert found(0).used() == 40 * MIB
    driver.set(**{"instances.0": 1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    driver.use(10, 20)
    assert found(0).used() == 20 * MIB
    assert found(1).used() == 0


def test_a_gpu_that_nvml_does_not_show(driver: Driver) -> None:
    gpu = found(7)
    assert (gpu.used(), gpu.joules(), gpu.processes()) == (None, None, None)
    assert gpu.missing == f"NVML: no devices fit the UUID {uuid(7)}"


def test_the_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu = found(0)
    assert gpu.used() is None and gpu.missing == "NVML: the package nvidia-ml-py is not installed"
    assert driver_version() is None


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_there_may_be_no_driver(driver: Driver, function: str) -> None:
    driver.set(**{f"error.{function}": NOT_LOADED})
    gpu = found(0)
    assert gpu.used() is None and gpu.missing is not None and gpu.missing.startswith("NVML: ")


@pytest.mark.parametrize(
    ("function", "lost"),
    [
        ("nvmlDeviceGetMemoryInfo_v2", ""),
        ("nvmlDeviceGetTotalEnergyConsumption", "joules"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "processes"),
        ("nvmlDeviceGetUtilizationRates", ""),
        ("nvmlDeviceGetMaxMigDeviceCount", ""),
        ("nvmlSystemGetDriverVersion", "version"),
    ],
)
def test_a_call_that_is_not_supported_takes_nothing_else_with_it(driver: Driver, function: str, lost: str) -> None:
    driver.set(**{f"error.{function}": NOT_SUPPORTED, "millijoules.0": 2000})
    gpu = found(0)
    readings = {"joules": gpu.joules(), "processes": gpu.processes(), "version": driver_version()}
    assert [name for name, reading in readings.items() if reading is None] == ([lost] if lost else [])
    assert gpu.used() is not None and gpu.missing is None


def test_without_the_memory_there_is_a_reason(driver: Driver) -> None:
    driver.set(**{"error.nvmlDeviceGetMemoryInfo_v2": NOT_SUPPORTED, "error.nvmlDeviceGetMemoryInfo": NOT_SUPPORTED})
    gpu = found(0)
    assert gpu.used() is None and gpu.processes() == 0 and gpu.missing is not None


# The meters


class Cuda:
    """What torch says of a GPU that is made up, in bytes."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.most = (0, 0)

    def use(self, allocated: int, reserved: int) -> None:
        """In MiB."""
        self.allocated, self.reserved = allocated * MIB, reserved * MIB
        self.most = (max(self.most[0], self.allocated), max(self.most[1], self.reserved))

    def reset(self) -> None:
        self.most = (self.allocated, self.reserved)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Lets torch have the GPU 0."""
    made = Cuda()
    monkeypatch.setattr(memory, "release", lambda: None)
    monkeypatch.setattr(memory, "create_context", lambda device: None)
    for name, answer in {
        "get_device_properties": lambda device: SimpleNamespace(uuid=uuid(0)),
        "memory_allocated": lambda device: made.allocated,
        "memory_reserved": lambda device: made.reserved,
        "max_memory_allocated": lambda device: made.most[0],
        "max_memory_reserved": lambda device: made.most[1],
        "reset_peak_memory_stats": lambda device: made.reset(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return made


def wait(true: Callable[[], bool]) -> None:
    """Until the thread that samples has come so far."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(1e-3)


def idle_meter(driver: Driver, cuda: Cuda, patch: pytest.MonkeyPatch) -> MemoryMeter:
    """A meter with a context of 60 MiB and 40 MiB of data, of which 10 MiB are a hole of the allocator."""
    driver.use(0, 25)  # of a display
    meter = MemoryMeter(torch.device("cuda:0"))
    patch.setattr(memory, "create_context", lambda device: driver.use(0, 85))
    meter.context()
    driver.set(**{"processes.0": 1})
    driver.use(0, 100)
    cuda.use(500, 500)  # a peak of the warm-up
    cuda.use(30, 40)
    meter.idle()
    return meter


def sampled(meter: MemoryMeter) -> memory.Sampler:
    return meter._samplers["device"]


def test_the_peak_on_the_gpu_is_above_idle(driver: Driver, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = idle_meter(driver, cuda, monkeypatch)
    meter.start()
    cuda.use(280, 300)
    driver.use(0, 360)
    wait(lambda: sampled(meter).highest == 360 * MIB)
    cuda.use(30, 40)
    driver.use(0, 100)
    measured = meter.stop()
    period = measured.pop("period_seconds")
    assert period is not None and memory.PERIOD / 2 < period < 10
    assert measured.pop("host_rss_bytes") is not None
    assert measured == {
        "meter": "nvml",
        "idle_bytes": 100 * MIB,
        "context_bytes": 60 * MIB,
        "allocated_bytes": 250 * MIB,
        "reserved_bytes": 260 * MIB,
        "device_bytes": 260 * MIB,
        "busy": None,
        "missing": None,
    }


def test_a_driver_that_vanishes_in_the_middle(driver: Driver, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = idle_meter(driver, cuda, monkeypatch)
    meter.start()
    driver.use(0, 400)
    wait(lambda: sampled(meter).highest == 400 * MIB)
    cuda.use(280, 300)
    driver.set(error=LOST)
    wait(lambda: not sampled(meter)._thread.is_alive())
    driver.set(error=0)  # even where it comes back: what happened meanwhile nobody knows
    measured = meter.stop()
    assert (measured["meter"], measured["idle_bytes"]) == ("torch", 30 * MIB)
    assert measured["device_bytes"] is None and measured["period_seconds"] is None
    assert measured["allocated_bytes"] == 250 * MIB and "GPU is lost" in str(measured["missing"])


def test_without_nvml_the_headline_is_that_of_torch(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = MemoryMeter(torch.device("cuda:0"))
    meter.context()
    meter.idle()
    meter.start()
    cuda.use(7, 8)
    measured = meter.stop()
    assert (measured["meter"], measured["allocated_bytes"]) == ("torch", 7 * MIB)
    assert (measured["device_bytes"], measured["context_bytes"], measured["busy"]) == (None, None, None)
    assert "nvidia-ml-py" in str(measured["missing"])


def test_other_work_before_ours_is_noticed(driver: Driver, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.use(0, 300)
    driver.set(**{"processes.0": 1, "busy.0": 70})
    meter = MemoryMeter(torch.device("cuda:0"))
    meter.context()
    driver.set(**{"processes.0": 2})
    meter.idle()
    meter.start()
    assert meter.stop()["busy"] == (
        "1 other process on the GPU; 300 MiB in use before this process used it; 70 % busy before this process used it"
    )


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ((100, 400, 100), "300 MiB taken by others while measuring"),  # torch has taken nothing
        ((400, 200, 400), "200 MiB given back by others while measuring"),
        ((200, 300, 150), None),  # libraries come and go
    ],
)
def test_memory_that_is_not_ours_is_noticed(
    driver: Driver, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, levels: tuple[int, int, int], words: str | None
) -> None:
    meter = idle_meter(driver, cuda, monkeypatch)
    idle, middle, end = levels
    driver.use(0, idle)
    meter.idle()
    meter.start()
    driver.use(0, middle)
    wait(lambda: middle * MIB in (sampled(meter).lowest, sampled(meter).highest))
    driver.use(0, end if words is None or "given" in words else middle)
    assert meter.stop()["busy"] == words


def test_a_process_that_comes_later_is_noticed(driver: Driver, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESSES_PERIOD", 1e-3)
    meter = idle_meter(driver, cuda, monkeypatch)
    meter.start()
    driver.set(**{"processes.0": 3})
    wait(lambda: meter._processes is not None and meter._processes.highest == 3)
    driver.set(**{"processes.0": 1})
    assert meter.stop()["busy"] == "2 other processes on the GPU"


# Energy


def test_energy_is_that_of_the_steps(driver: Driver) -> None:
    def measured(begin: int, end: int, before: float = 0.0, **other: Any) -> EnergyMeter:
        meter = EnergyMeter(found(0), before)
        driver.set(**{"millijoules.0": begin})
        meter.start()
        driver.set(**{"millijoules.0": end}, **other)
        meter.stop()
        return meter

    meter = measured(5000, 25_000)
    assert meter.per_step(10, seconds=3.0) == 2.0
    assert meter.per_step(10, seconds=0.5) is None, "the counter is too slow for that"
    driver.set(**{"millijoules.0": 90_000})
    meter.start()
    driver.set(**{"millijoules.0": 100_000})
    meter.stop()
    assert meter.per_step(10, seconds=3.0) == 3.0, "what was used between a stop and a start is not the steps'"
    assert measured(5000, 25_000, before=10.0).per_step(10, seconds=3.0) == 3.0
    assert measured(25_000, 10).per_step(10, seconds=3.0) is None, "the counter began anew"
    assert measured(5000, 25_000, error=LOST).per_step(10, seconds=3.0) is None


@pytest.mark.parametrize("supported", [True, False])
def test_without_a_counter_there_is_no_energy(driver: Driver, supported: bool) -> None:
    meter = EnergyMeter(found(0) if supported else None)
    meter.start()
    meter.stop()
    assert meter.per_step(10, seconds=3.0) is None


def test_a_cell_on_a_gpu_has_its_numbers(
    driver: Driver, cuda: Cuda, dummy: type[Dummy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are the processor's; what they take of the GPU is made up."""
    driver.set(**{"millijoules.0": 0})
    monkeypatch.setattr(cell, "MemoryMeter", lambda device: MemoryMeter(torch.device("cuda:0")))
    step = Dummy.step

    def costly(method: Dummy) -> dict[str, torch.Tensor]:
        driver.set(**{"millijoules.0": driver.settings["millijoules.0"] + 2500})
        driver.use(0, 50 if method.done else 200)
        if method.done == 0:
            wait(lambda: not samplers or samplers[0].highest == 200 * MIB)
        return step(method)

    samplers: list[memory.Sampler] = []
    made = memory.Sampler

    def kept(*arguments: Any) -> memory.Sampler:
        samplers.append(made(*arguments))
        return samplers[-1]

    monkeypatch.setattr(memory, "Sampler", kept)
    monkeypatch.setattr(Dummy, "step", costly)
    seconds = iter(range(10_000))
    cost = run(job(tmp_path, steps=4), lambda: float(next(seconds))).record["cost"]
    assert cost["joules_per_step"] == 2.5
    assert (cost["memory"]["meter"], cost["memory"]["device_bytes"]) == ("nvml", 150 * MIB)
