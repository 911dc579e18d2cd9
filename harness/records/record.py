"""The record of one cell: what was asked, what came out, what it cost, and on what.

One JSON file per cell; units stand in the names. Raw samples and values are kept, so that every table and figure can be
computed again from the records alone.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

from benchmarks.errors import UserError
from harness.records.files import replacing

SCHEMA = 1
PROTOCOL_VERSION = "2"
"""Raised whenever the code moves numbers, seconds included: where CHANGELOG says that numbers moved."""

Status = Literal["ok", "oom", "timeout", "diverged", "error"]
Meter = Literal["nvml", "torch", "host_rss"]
LATER_COSTS = ("prepare", "compile_seconds", "peak_live_bytes", "forecast_bytes", "networks_at_once")
LATER_MEMORY = ("period_seconds", "busy", "missing")
"""What the first records of this schema do not have."""
WORDS = ("meter", "busy", "missing", "prepare")
"""Of the keys that may be null, those that are not numbers."""
ENVIRONMENT = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "DNNL_", "ONEDNN_", "TORCH_", "PYTORCH_", "CUBLAS_", "CUDNN_"),
    *("NVIDIA_TF32_OVERRIDE", "GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD"),
)
"""Beginnings of the environment variables that can move a number: threads, kernels, allocators."""
FINAL: tuple[Status, ...] = ("ok", "oom", "timeout", "diverged")
"""Results: a cell that has one of these is not run again. ``error`` is."""


class NewerVersion(UserError):
    """A record that a later version of the suite wrote."""


class CurvePoint(TypedDict):
    """The synthetic set as it stood after ``step`` steps and ``seconds`` of distilling."""

    step: int
    seconds: float
    values: list[float]


class Accuracy(TypedDict):
    """Test accuracies as fractions, one per network evaluated; ``std`` is that of a sample (n − 1)."""

    values: list[float]
    mean: float | None
    std: float | None
    krr_values: list[float]
    curve: list[CurvePoint]


class Memory(TypedDict):
    """Peak memory of the distilling steps *above* the idle level, in bytes; null where not measured.

    The idle level is read after the data is in place and the libraries are warm, before the method exists, so that
    networks and optimiser states that a method keeps are part of its memory.
    """

    meter: Meter | None
    """Which of the numbers is the headline: ``nvml`` device_bytes, ``torch`` allocated_bytes, else host_rss_bytes."""
    idle_bytes: int | None
    """The idle level itself, as the meter reads it."""
    context_bytes: int | None
    """What the GPU context and the libraries took before any data."""
    allocated_bytes: int | None
    reserved_bytes: int | None
    device_bytes: int | None
    host_rss_bytes: int | None
    period_seconds: float | None
    """Mean time between two samples of the headline; null where its peak is kept by a counter."""
    busy: str | None
    """Other work that was seen on the device or the cores meanwhile, in words; null: none, or no way to see it."""
    missing: str | None
    """Why NVML has no number, or not all the time, in words; null: it has, or there is no GPU."""


class Cost(TypedDict):
    """Seconds of a synchronised clock, and bytes. Null: not measured, or the method has no such phase."""

    prepare_seconds: float | None
    """One-off work, including what it took when it was done: entries of the cache count with their recorded seconds."""
    prepare: Literal["reduced"] | None
    """``reduced``: less was prepared than the method needs, for a cost cell; null: all that its settings say."""
    prepare_cached: int | None
    """How many entries came from the cache of an earlier cell."""
    warmup_seconds: float | None
    compile_seconds: float | None
    """What the first cycle of the warm-up took beyond a later one: compilation, autotuning, filling of caches."""
    step_seconds: list[float]
    """Seconds per step, one sample per window of whole cycles."""
    steps_per_sample: int | None
    distill_seconds: float | None
    evaluate_seconds: float | None
    """To choose how many networks are trained at a time included."""
    networks_at_once: int | None
    """Networks trained at a time to evaluate. Accuracies agree to rounding whichever, and with
    ``--networks-at-once`` to the bit."""
    memory: Memory
    joules_per_step: float | None
    """Of the whole GPU, from the first step to the last; null where it has no counter, or for less than a second."""
    flops_per_step: float | None
    """Of matrix products, convolutions and solves; a multiplication and an addition are two."""
    saved_bytes_per_step: float | None
    """Tensors kept for the backward passes, every storage counted once a step."""
    peak_live_bytes: int | None
    """Most bytes of tensors alive at once in a cycle, above those alive before the method existed: exact, and the
    same on every machine. It counts tensors, not what an allocator or a library takes on top."""
    forecast_bytes: int | None
    """``peak_live_bytes`` as forecast, with nothing computed."""
    parameters: int | None
    """Of the network that distils."""
    parameters_evaluated: int | None
    """Of the network that is evaluated; the norm may differ."""


class Artifact(TypedDict):
    """The file of a distilled set, and the SHA-256 of its bytes."""

    name: str
    sha256: str


class Record(TypedDict):
    schema: int
    protocol_version: str
    cell: dict[str, Any]
    config: dict[str, Any]
    """Every hyper-parameter as asked for: known before the cell runs, so the same however the cell ends."""
    resolved: dict[str, Any]
    """The same after the method has resolved those that follow from the data; empty where it never came to that."""
    status: Status
    message: str | None
    accuracy: Accuracy
    cost: Cost
    artifact: Artifact | None
    """The distilled set beside the record; null where there is none, and in records of earlier versions."""
    provenance: dict[str, Any]


def new(cell: Mapping[str, Any], config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Record:
    """A record with nothing measured yet; its status is ``error`` until the cell says otherwise."""
    return {
        "schema": SCHEMA,
        "protocol_version": PROTOCOL_VERSION,
        "cell": dict(cell),
        "config": dict(config),
        "resolved": {},
        "status": "error",
        "message": None,
        "accuracy": {"values": [], "mean": None, "std": None, "krr_values": [], "curve": []},
        "cost": {
            "prepare_seconds": None,
            "prepare": None,
            "prepare_cached": None,
            "warmup_seconds": None,
            "compile_seconds": None,
            "step_seconds": [],
            "steps_per_sample": None,
            "distill_seconds": None,
            "evaluate_seconds": None,
            "networks_at_once": None,
            "memory": {
                "meter": None,
                "idle_bytes": None,
                "context_bytes": None,
                "allocated_bytes": None,
                "reserved_bytes": None,
                "device_bytes": None,
                "host_rss_bytes": None,
                "period_seconds": None,
                "busy": None,
                "missing": None,
            },
            "joules_per_step": None,
            "flops_per_step": None,
            "saved_bytes_per_step": None,
            "peak_live_bytes": None,
            "forecast_bytes": None,
            "parameters": None,
            "parameters_evaluated": None,
        },
        "artifact": None,
        "provenance": dict(provenance),
    }


def summarise(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n − 1); None where there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def write(record: Record, path: Path) -> None:
    """Write ``path`` in one go: whoever reads it finds the whole record or none."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        # A file name that is no UTF-8 has lone surrogates: in JSON they are escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def load(path: Path) -> Record:
    """Read and check a record.

    Raises UserError naming the file: NewerVersion where its schema or protocol is one of a later version, else where it
    is not a whole record.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")  # to read a pipe might never end
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"damaged record {path}: {error}") from error
    if newer := _newer(found):
        raise NewerVersion(
            f"{path} was written by a newer version of this suite ({newer}): update the suite, or take another folder"
        )
    _complete(found)
    if problem := _problem(found):
        raise UserError(f"damaged record {path}: {problem}")
    return cast(Record, found)


def refuse_newer(folder: Path) -> None:
    """Raises NewerVersion where a record in ``folder`` is of a later version: tables made here would lack its row."""
    for path in sorted(folder.glob("*.json")):
        try:
            load(path)
        except NewerVersion:
            raise
        except UserError:
            continue


def _newer(found: Any) -> str | None:
    """Name what is of a later version in ``found``."""
    if not isinstance(found, dict):
        return None
    schema, protocol = found.get("schema"), found.get("protocol_version")
    if isinstance(schema, int) and schema > SCHEMA:
        return f"schema {schema}, and this one reads {SCHEMA}"
    if isinstance(protocol, str) and protocol.isdecimal() and int(protocol) > int(PROTOCOL_VERSION):
        return f"protocol {protocol}, and this one has {PROTOCOL_VERSION}"
    return None


def load_all(folder: Path) -> tuple[list[Record], list[str]]:
    """All records of ``folder`` in order of name, and one line for each file that is none."""
    records, damaged = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(load(path))
        except UserError as error:
            damaged.append(str(error))
    return records, damaged


def _complete(found: Any) -> None:
    """Give a record of an earlier version nulls for the numbers that were not measured then.

    Its configuration is the resolved one.
    """
    if isinstance(found, dict):
        found.setdefault("resolved", found.get("config"))
        found.setdefault("artifact", None)
    cost = found.get("cost") if isinstance(found, dict) else None
    memory = cost.get("memory") if isinstance(cost, dict) else None
    for part, names in ((cost, LATER_COSTS), (memory, LATER_MEMORY)):
        if isinstance(part, dict):
            for name in names:
                part.setdefault(name, None)


def _problem(found: Any) -> str | None:
    """What is wrong with ``found`` as a record; None if nothing is."""
    if not isinstance(found, dict):
        return "not a JSON object"
    if found.get("schema") != SCHEMA:
        return f"schema {found.get('schema')!r}, and this version reads {SCHEMA}"
    template = new({}, {}, {})
    for key, expected in template.items():
        if key not in found:
            return f"{key!r} is missing"
        if isinstance(expected, dict) and not isinstance(found[key], dict):
            return f"{key!r} is not an object"
    if found["status"] not in get_args(Status):
        return f"unknown status {found['status']!r}"
    for key in ("method", "dataset", "ipc", "seed", "budget", "protocol"):
        if key not in found["cell"]:
            return f"cell.{key} is missing"
    for key in ("ipc", "seed", "width", "depth", "steps", "image_size", "networks_evaluated", "evaluate_steps"):
        value = found["cell"].get(key)
        if not isinstance(value, int) and (key in ("ipc", "seed") or value is not None):
            return f"cell.{key} is not a whole number"
    threads = found["provenance"].get("threads")
    if threads is not None and not _is_number(threads):
        return "provenance.threads is not a number"
    accuracy, cost, memory = found["accuracy"], found["cost"], found["cost"].get("memory")
    if not isinstance(memory, dict):
        return "cost.memory is not an object"
    parts: tuple[tuple[str, dict[str, Any], Mapping[str, Any]], ...] = (
        ("accuracy", accuracy, template["accuracy"]),
        ("cost", cost, template["cost"]),
        ("cost.memory", memory, template["cost"]["memory"]),
    )
    for name, part, expected in parts:
        for key, default in expected.items():
            if key not in part:
                return f"{name}.{key} is missing"
            if default is None and key not in WORDS and part[key] is not None and not _is_number(part[key]):
                return f"{name}.{key} is not a number"
    if memory["meter"] not in (None, *get_args(Meter)):
        return f"unknown meter {memory['meter']!r}"
    for name, values in (
        ("accuracy.values", accuracy["values"]),
        ("accuracy.krr_values", accuracy["krr_values"]),
        ("cost.step_seconds", cost["step_seconds"]),
    ):
        if not (isinstance(values, list) and all(_is_number(value) for value in values)):
            return f"{name} is not a list of numbers"
    artifact = found["artifact"]
    if artifact is not None and not (
        isinstance(artifact, dict) and all(isinstance(artifact.get(key), str) for key in ("name", "sha256"))
    ):
        return "'artifact' has no name and sha256"
    if found["status"] == "ok" and not accuracy["values"] and found["cell"]["budget"] != "cost":
        return "status ok without accuracies"
    return _out_of_range(found)


LARGEST = 1e300
"""Numbers are smaller, so that sums of them are finite."""
DEEPEST = 100
"""Levels of nesting in a record."""


def _out_of_range(found: Mapping[str, Any]) -> str | None:
    """Name a value that nothing measured can have: accuracies are fractions, and no cost is below zero."""
    if not _is_shallow(found):
        return f"nested more than {DEEPEST} levels deep"
    texts = {f"cell.{name}": found["cell"][name] for name in ("method", "dataset", "budget", "protocol")}
    texts |= {"protocol_version": found["protocol_version"], "message": found["message"] or ""}
    texts["provenance.device"] = found["provenance"].get("device") or ""
    if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
        return f"{wrong[0]} is not a text"
    accuracy, cost, curve = found["accuracy"], found["cost"], found["accuracy"]["curve"]
    if not isinstance(curve, list) or not all(
        isinstance(point, dict)
        and isinstance(point.get("values"), list)
        and all(map(_is_number, (point.get("step"), point.get("seconds"), *point["values"])))
        for point in curve
    ):
        return "accuracy.curve is not a list of points"
    ranges = [
        *((f"accuracy.{name}", accuracy[name], 1.0) for name in ("values", "krr_values", "mean", "std")),
        *(("accuracy.curve", point["values"], 1.0) for point in curve),
        *(("accuracy.curve", [point["step"], point["seconds"]], math.inf) for point in curve),
        *((f"cell.{name}", found["cell"][name], math.inf) for name in ("ipc", "seed")),
        *((f"cost.{name}", value, math.inf) for name, value in cost.items()),
        *((f"cost.memory.{name}", value, math.inf) for name, value in cost["memory"].items()),
    ]
    for name, value, largest in ranges:
        numbers = [number for number in (value if isinstance(value, list) else [value]) if _is_number(number)]
        if any(not 0 <= number <= largest for number in numbers):
            return f"{name} is out of range"
    return None


def _is_shallow(value: object) -> bool:
    """Whether whoever walks through ``value`` comes to its end before Python's stack does."""
    level = [value]
    for _ in range(DEEPEST):
        level = [part for item in level if isinstance(item, (dict, list)) for part in _parts(item)]
    return not level


def _parts(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def provenance(
    command: str, *, device: str, fingerprint: str | None, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """What a number was measured with; ``driver``, ``cuda`` and threads are for the caller to fill in."""
    return {
        **_commit(),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "threads": None,
        "environment": {name: environment[name] for name in sorted(environment) if name.startswith(ENVIRONMENT)},
        "driver": None,
        "cuda": None,
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "frepo_bench": _version("frepo-bench"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "data_fingerprint": fingerprint,
    }


def cpu_name() -> str:
    """The processor as it names itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """The name of the processor or of the GPU ``device`` (``cuda`` or ``cuda:N``)."""
    if not device.startswith("cuda"):
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """The commit of this working tree and whether the code differs from it; nulls where there is no repository.

    A new method that is not committed counts as a difference; results and documents do not.
    """
    here = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here:
            return {"commit": None, "dirty": None}  # installed inside somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=all", "--", "benchmarks", "methods", "harness")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
