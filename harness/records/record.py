"""The records of a distillation and of its evaluations: what was asked, what came out, what it cost, and on what.

Everything of one distillation lies in one folder (`Distilled`)::

    record.json                   Record: the distillation and what it cost
    set.safetensors, set.png      the distilled set, and a picture of it
    snapshots/step-12.safetensors the synthetic images after so many steps, where a curve was asked for
    evaluations/NAME-HASH.json    EvaluationRecord: one question asked of the set
    events.jsonl                  losses, step times and memory while it was distilled
    tensorboard/                  the same for TensorBoard, and images, where that was asked for
    checkpoint/                   the state of the method, while the record is not final
    evaluations/NAME-HASH.parts/  results of single networks, while the answer is not final
    log.txt                       the traceback, where something failed

Units stand in the names of the fields. Raw samples and values are kept, so that every table and figure can be computed
again from the records alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from benchmarks.errors import UserError
from benchmarks.files import replacing

if TYPE_CHECKING:
    from methods.base import Synthetic

SCHEMA = 2
PROTOCOL_VERSION = "4"
"""Raised whenever the code moves numbers, seconds included: where CHANGELOG says that numbers moved."""
RECORD, SET, PICTURE, EVALUATIONS = "record.json", "set.safetensors", "set.png", "evaluations"
SNAPSHOTS, EVENTS, LOG, CHECKPOINT = "snapshots", "events.jsonl", "log.txt", "checkpoint"
TENSORBOARD = "tensorboard"
"""Names inside the folder of a distillation."""
AGAIN = ".again"
"""The folder inside the output where a set is distilled that is there already."""

Status = Literal["ok", "oom", "timeout", "diverged", "error"]
Meter = Literal["nvml", "torch", "host_rss"]
FINAL: tuple[Status, ...] = ("ok", "oom", "timeout", "diverged")
"""Results: what has one of these is not run again. ``error`` is."""


class NewerVersion(UserError):
    """A record that a later version of the suite wrote."""


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
    """Taken by the GPU context and the libraries before any data."""
    allocated_bytes: int | None
    reserved_bytes: int | None
    device_bytes: int | None
    host_rss_bytes: int | None
    period_seconds: float | None
    """Mean time between two samples of the headline; null where its peak is kept by a counter."""
    busy: str | None
    """Other work that was seen on the device or the cores meanwhile, in words; null: none, or no way to see it."""
    missing: str | None
    """Why NVML has no number, or not all the time, in words; null: it has, or there is no GPU that it knows."""


class Cost(TypedDict):
    """Seconds of a synchronised clock, and bytes. Null: not measured, or the method has no such phase."""

    prepare_seconds: float | None
    """One-off work, including what it took when it was done: entries of the cache count with their recorded seconds."""
    prepare: Literal["reduced"] | None
    """``reduced``: less was prepared than the method needs, because only the cost of a step was asked for."""
    prepare_cached: int | None
    """How many entries came from the cache of an earlier cell."""
    warmup_seconds: float | None
    compile_seconds: float | None
    """Time of the first cycle of the warm-up beyond that of a later one: compilation, autotuning, filling of caches."""
    step_seconds: list[float]
    """Seconds per step, one sample per window of whole cycles."""
    steps_per_sample: int | None
    distill_seconds: float | None
    memory: Memory
    joules_per_step: float | None
    """Energy of the whole GPU, from the first step to the last; null without a counter, or for less than a second."""
    flops_per_step: float | None
    """Operations of matrix products, convolutions and solves; a multiplication and an addition are two."""
    saved_bytes_per_step: float | None
    """Tensors kept for the backward passes, every storage counted once a step."""
    peak_live_bytes: int | None
    """Most bytes of tensors alive at once in a cycle, above those alive before the method existed: exact, and the
    same on every machine. It counts tensors, not what an allocator or a library takes on top."""
    forecast_bytes: int | None
    """``peak_live_bytes`` as forecast, with nothing computed."""
    parameters: int | None
    """Parameters of the network that distils."""


class Artifact(TypedDict):
    """The file of a distilled set, relative to the folder, and the SHA-256 of its bytes."""

    name: str
    sha256: str


class Decoder(TypedDict):
    """How the images of a set with a decoder (`benchmarks.decoder`) are stored."""

    factor: int
    """Each stored image holds factor × factor smaller ones."""
    stored_pixels: int
    """Pixels of all stored images; a pixel counts once, whatever its channels."""
    decoded_images: int
    """Images on which networks are trained."""


class Snapshot(Artifact):
    """The synthetic set as it stood after ``step`` steps and ``seconds`` of distilling."""

    step: int
    seconds: float


class Segment(TypedDict):
    """A stretch of the distilling steps that one process took, on one machine."""

    started: str
    """When the process began, in UTC."""
    ended: str
    """When the last step was taken or, of a process that was killed, its last checkpoint written; in UTC."""
    device: str | None
    threads: int | None
    torch: str | None
    steps: int
    """Steps that were kept: those after the last checkpoint of a killed process were taken again."""
    seconds: float
    """Seconds that they took, without preparation and warm-up."""


class Record(TypedDict):
    """A distillation."""

    schema: int
    protocol_version: str
    identity: str
    """8 hexadecimal digits, which follow from ``distillation``, ``config`` and ``protocol_version``."""
    distillation: dict[str, Any]
    """Everything that determines the set except the hyper-parameters: as `harness.plan.jobs.Distillation`."""
    config: dict[str, Any]
    """Every hyper-parameter as asked for: known before the cell runs, so the same however the cell ends."""
    resolved: dict[str, Any]
    """The same after the method has resolved those that follow from the data; empty where it never came to that."""
    asked: dict[str, str]
    """``budget`` and ``protocol``: the words for which the settings above stand, no part of the identity."""
    status: Status
    message: str | None
    time_limit_seconds: float | None
    """The limit, where it struck."""
    steps: int | None
    """Updates of the synthetic images; null where the method has none, or none were taken."""
    cost: Cost
    artifact: Artifact | None
    """The distilled set; null where there is none."""
    decoder: NotRequired[Decoder]
    """How a set with a decoder is stored; missing: networks are trained on the stored images."""
    curve_points: int
    """Points of the curve for which snapshots were taken."""
    snapshots: list[Snapshot]
    segments: NotRequired[list[Segment]]
    """One for each process that took steps, in order; ``provenance`` is that of the last. Records that were written
    before cells could be continued do not have it."""
    provenance: dict[str, Any]


class AskedSet(TypedDict):
    """A set that an evaluation asked about."""

    distillation: str
    """Identity of the distillation."""
    step: int | None
    """The set after so many steps; null: after the last."""
    sha256: str | None
    """SHA-256 of the file of the set; null: the whole real training set, which has no file."""


class EvaluationRecord(TypedDict):
    """One question asked of one set, or of several."""

    schema: int
    protocol_version: str
    identity: str
    """8 hexadecimal digits, which follow from all of the following that determines a value."""
    evaluation: str
    """Name of the evaluation."""
    sets: list[AskedSet]
    config: dict[str, Any]
    """The fields of the evaluation's ``Config``, resolved."""
    seed: int
    device_kind: str
    tf32: bool
    status: Status
    message: str | None
    time_limit_seconds: float | None
    values: dict[str, list[float]]
    """Name of a quantity → its raw values, one per network, attacker or step."""
    class_accuracies: NotRequired[list[list[float | None]]]
    """Accuracy on the test images of each class, in the order of the data set's classes, one list per network; null
    for a class without test images. Missing: not an accuracy of networks, or written before there was such a list; an
    answer that has grown since then has lists for its last networks."""
    cost: dict[str, float | None]
    """``seconds`` of the evaluation, and whatever else it reports of its cost: ``networks_at_once``, ``parameters``."""
    busy: str | None
    """Other work that was seen on the cores meanwhile, in words; null: none, or no way to see it."""
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Distilled:
    """The folder of one distillation, as it was read."""

    folder: Path
    record: Record
    evaluations: tuple[EvaluationRecord, ...] = ()
    """In the order of their file names."""

    @property
    def set_path(self) -> Path:
        return self.folder / SET


def identity(*parts: Any) -> str:
    """8 hexadecimal digits of a hash over ``parts``, which JSON can write, and the version of the protocol."""
    text = json.dumps([PROTOCOL_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def new(
    identity: str,
    distillation: Mapping[str, Any],
    config: Mapping[str, Any],
    asked: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> Record:
    """A record with nothing measured yet; its status is ``error`` until the cell says otherwise."""
    memory = cast(Memory, dict.fromkeys(Memory.__annotations__))
    return {
        "schema": SCHEMA,
        "protocol_version": PROTOCOL_VERSION,
        "identity": identity,
        "distillation": dict(distillation),
        "config": dict(config),
        "resolved": {},
        "asked": dict(asked),
        "status": "error",
        "message": None,
        "time_limit_seconds": None,
        "steps": None,
        "cost": cast(Cost, {**dict.fromkeys(Cost.__annotations__), "step_seconds": [], "memory": memory}),
        "artifact": None,
        "curve_points": 0,
        "snapshots": [],
        "segments": [],
        "provenance": dict(provenance),
    }


def new_segment(provenance: Mapping[str, Any]) -> Segment:
    """A segment without steps, of the process with this ``provenance``."""
    machine = {name: provenance[name] for name in ("started", "device", "threads", "torch")}
    return cast(Segment, {**machine, "ended": now(), "steps": 0, "seconds": 0.0})


def decoder_of(synthetic: Synthetic) -> Decoder | None:
    """How the images of ``synthetic`` are stored; None where networks are trained on them as they are."""
    count, _, height, width = synthetic.images.shape
    factor = synthetic.factor
    if factor == 1:
        return None
    return {"factor": factor, "stored_pixels": count * height * width, "decoded_images": count * factor**2}


def now() -> str:
    """The present time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_evaluation(
    identity: str,
    evaluation: str,
    sets: Sequence[AskedSet],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    seed: int,
    device_kind: str,
    tf32: bool,
) -> EvaluationRecord:
    """A record of an evaluation with no values yet; its status is ``error`` until the cell says otherwise."""
    return {
        "schema": SCHEMA,
        "protocol_version": PROTOCOL_VERSION,
        "identity": identity,
        "evaluation": evaluation,
        "sets": list(sets),
        "config": dict(config),
        "seed": seed,
        "device_kind": device_kind,
        "tf32": tf32,
        "status": "error",
        "message": None,
        "time_limit_seconds": None,
        "values": {},
        "cost": {"seconds": None},
        "busy": None,
        "provenance": dict(provenance),
    }


def summarise(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n − 1); None where there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def write(record: Record | EvaluationRecord, path: Path) -> None:
    """Write ``path`` at once: whoever reads it sees the whole record or none."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        # A file name that is no UTF-8 has lone surrogates: in JSON they are escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def load(path: Path) -> Record:
    """Read and check the record of a distillation.

    Raises UserError naming the file: NewerVersion where its schema or protocol is one of a later version, else where it
    is not a whole record.
    """
    return cast(Record, _load(path, _record_problem))


def load_evaluation(path: Path) -> EvaluationRecord:
    """Read and check the record of an evaluation. Raises UserError as `load` does."""
    return cast(EvaluationRecord, _load(path, evaluation_problem))


def _load(path: Path, problem: Callable[[Any], str | None]) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")  # to read a pipe might never end
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"damaged record {path}: {error}") from error
    if newer := _newer(content):
        raise NewerVersion(
            f"{path} was written by a newer version of this suite ({newer}): update the suite, or take another folder"
        )
    if wrong := problem(content):
        raise UserError(f"damaged record {path}: {wrong}")
    return content


def folders(root: Path) -> Iterator[Path]:
    """The folders of distillations under ``root``, itself included, however deep, in the order of their paths.

    Hidden folders are left out: a run keeps its unfinished work there.
    """
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if RECORD in (*files, *inside):  # a folder of this name is damage, of which a line tells
            inside.clear()
            yield Path(folder)


def read(folder: Path) -> Distilled:
    """The distillation in ``folder`` with its evaluations. Raises UserError where one of the files is damaged."""
    record = load(folder / RECORD)
    return Distilled(
        folder, record, tuple(load_evaluation(path) for path in sorted((folder / EVALUATIONS).glob("*.json")))
    )


def read_all(root: Path) -> tuple[list[Distilled], list[str]]:
    """All distillations under ``root``, and one line for each file that is damaged.

    A damaged evaluation leaves the others and the distillation as they are.
    """
    distilled, damaged = [], []
    for folder in folders(root):
        try:
            record = load(folder / RECORD)
        except UserError as error:
            damaged.append(str(error))
            continue
        evaluations = []
        for path in sorted((folder / EVALUATIONS).glob("*.json")):
            try:
                evaluations.append(load_evaluation(path))
            except UserError as error:
                damaged.append(str(error))
        distilled.append(Distilled(folder, record, tuple(evaluations)))
    return distilled, damaged


def refuse_newer(root: Path) -> None:
    """Raises NewerVersion where a record under ``root`` is of a later version: tables made here would lack its row."""
    for folder in folders(root):
        for path in (folder / RECORD, *sorted((folder / EVALUATIONS).glob("*.json"))):
            try:
                _load(path, lambda content: None)
            except NewerVersion:
                raise
            except UserError:
                continue


def _newer(content: Any) -> str | None:
    """Name what is of a later version in ``content``."""
    if not isinstance(content, dict):
        return None
    schema, protocol = content.get("schema"), content.get("protocol_version")
    if isinstance(schema, int) and schema > SCHEMA:
        return f"schema {schema}, and this one reads {SCHEMA}"
    if isinstance(protocol, str) and protocol.isdecimal() and int(protocol) > int(PROTOCOL_VERSION):
        return f"protocol {protocol}, and this one has {PROTOCOL_VERSION}"
    return None


# --- a whole record has the types above, with numbers of at least 0 ------------------------------------------------

LARGEST = 1e300
"""Numbers are smaller, so that sums of them are finite."""
DEEPEST = 100
"""Levels of nesting in a record: who walks through it comes to its end before Python's stack does."""
DISTILLATION = {
    **dict.fromkeys(
        ("method", "dataset", "network", "norm", "preprocess", "device_kind", "dtype", "data_fingerprint"), str
    ),
    **dict.fromkeys(("ipc", "seed", "width", "depth"), int),
    **dict.fromkeys(("steps", "image_size", "memory_limit_bytes"), int | None),
    **dict.fromkeys(("seconds_include_prepare", "cost_only", "tf32"), bool),
    "seconds": float | None,
    "interleaved": str | None,
}
"""Fields of every distillation, as `harness.plan.jobs.Distillation` has them."""
OPTIONAL: dict[str, Any] = {
    "provenance": {"threads": float | None, "device": str | None},
}
"""Fields of parts that may be missing."""
MAY_LACK = ("segments", "decoder", "class_accuracies")
"""Fields of a record that may be missing."""


def _record_problem(content: Any) -> str | None:
    """Why ``content`` is no record of a distillation; None: it is."""
    return (
        _outline_problem(content, Record)
        or _fields_problem(content["distillation"], DISTILLATION, "distillation.")
        or next((f"unknown distillation.{name}" for name in content["distillation"] if name not in DISTILLATION), None)
        or _fields_problem(content["asked"], {"budget": str, "protocol": str}, "asked.")
    )


def evaluation_problem(content: Any) -> str | None:
    """Why ``content`` is no record of an evaluation; None: it is."""
    if problem := _outline_problem(content, EvaluationRecord):
        return problem
    for name, values in content["values"].items():
        if "accuracy" in name and not all(0 <= value <= 1 for value in values):
            return f"values.{name} is out of range"
    if any(value is not None and value > 1 for own in content.get("class_accuracies", ()) for value in own):
        return "class_accuracies are out of range"
    if not content["sets"]:
        return "sets are missing"
    if content["status"] == "ok" and not any(content["values"].values()):
        return "status ok without values"
    from harness import evaluations  # whose own configurations are checked: that imports torch

    asked = content["evaluation"], content["config"]
    return evaluations.config_problem(*asked) or evaluations.values_problem(*asked, content["values"])


def _outline_problem(content: Any, kind: type[Any]) -> str | None:
    """Why ``content`` does not have the types of ``kind``, a TypedDict; None: it has."""
    if not isinstance(content, dict):
        return "not a JSON object"
    if content.get("schema") != SCHEMA:
        return f"schema {content.get('schema')!r}, and this version reads {SCHEMA}"
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
        level = [part for part in level if isinstance(part, (dict, list))]
    if level:
        return f"nested more than {DEEPEST} levels deep"
    known = {name: hint for name, hint in get_type_hints(kind).items() if name in content or name not in MAY_LACK}
    if problem := _fields_problem(content, known, ""):
        return problem
    for part, fields in OPTIONAL.items():
        own = {**dict.fromkeys(fields), **content.get(part, {})}
        if problem := _fields_problem(own, fields, f"{part}."):
            return problem
    return None


def _fields_problem(value: Mapping[str, Any], kinds: Mapping[str, Any], place: str) -> str | None:
    for name, kind in kinds.items():
        if name not in value:
            return f"{place}{name} is missing"
        if problem := _value_problem(value[name], kind, place + name):
            return problem
    return None


def _value_problem(value: Any, kind: Any, place: str) -> str | None:
    """Why ``value``, which stands at ``place``, is not of the type ``kind``; None: it is."""
    if get_origin(kind) in (UnionType, Union):  # with None
        return None if value is None else _value_problem(value, get_args(kind)[0], place)
    if is_typeddict(kind):
        if isinstance(value, dict):
            return _fields_problem(value, get_type_hints(kind), f"{place}.")
        return f"{place} is not an object"
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return None if value in arguments else f"{place} is {value!r}, which is none of {', '.join(arguments)}"
    words = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if origin in words:
        if not isinstance(value, origin):
            return f"{place} is not {words[origin]}"
        parts = value.items() if origin is dict else enumerate(value) if origin is list else ()
        if arguments and arguments[-1] is not Any:
            return next(
                filter(None, (_value_problem(part, arguments[-1], f"{place}.{at}") for at, part in parts)), None
            )
        return None
    least = -LARGEST if place.startswith("values.") else 0
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not least <= value < LARGEST:
        return f"{place} is not a {'whole number' if kind is int else 'number'}{'' if least else ' of at least 0'}"
    return None
