"""A distillation and the questions asked of it: their identities, and the job that carries them out.

A *distillation* is everything that determines a distilled set. An *evaluation* is one question asked of a set. Each has
an identity of its own, so a new question never distils again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records import record
from harness.records.record import AskedSet

WHOLE_DATA = "whole_data"
"""In place of a method: all real images, as the ceiling of a table."""
ACCURACY = "accuracy"
"""The evaluation whose configuration is a recipe as a whole, which is asked of the sets of a curve as well; also the
name of its first quantity."""
NAME_LENGTH = 200
"""Letters of the readable part of a folder's name; file systems take 255 with all that is added."""
HARD_LABELS = "hard_labels"
"""The evaluation that is asked beside ``ACCURACY``, with the same configuration, where a method says so."""
ROUNDING = ("networks_at_once",)
"""Fields of an evaluation that move its values by rounding alone, so they are no part of its identity."""


def as_json(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them: lists for tuples."""
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return fields


def from_json(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """The dataclass ``kind`` with ``fields`` as JSON has them; frozen configurations have no lists."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return kind(**{name: tuples(value) for name, value in fields.items()})


@dataclass(frozen=True)
class Distillation:
    """Everything that determines a distilled set, the configuration of the method apart."""

    method: str
    dataset: str
    """The name; of one's own folder ``folder:`` and its last part. ``data_fingerprint`` tells two of them apart."""
    data_fingerprint: str
    ipc: int
    """Synthetic images per class; 0 for all real images (`WHOLE_DATA`)."""
    image_size: int | None
    """Images were resized to this; None: as they come."""
    preprocess: str
    network: str
    width: int
    depth: int
    norm: str
    """Norm of the network that distils; an evaluation's protocol says what the evaluated network has."""
    seed: int
    steps: int | None
    """Outer steps; None where the method has none, or where ``seconds`` decide."""
    seconds: float | None
    """Time budget from which the cell derives its steps."""
    seconds_include_prepare: bool
    cost_only: bool
    """Whether only the cost of a step is asked for: numbers that are not finite do not end the distillation."""
    device_kind: str
    dtype: str
    tf32: bool
    memory_limit_bytes: int | None
    interleaved: str | None = None
    """The methods whose steps are taken by turns in one process, this one among them; None: it has one of its own."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self, config: Mapping[str, Any]) -> str:
        """8 hexadecimal digits of a hash over the distillation and its configuration."""
        return record.identity(self.to_dict(), config)

    def name(self, config: Mapping[str, Any]) -> str:
        """Name of its folder: a readable part, then the identity."""
        ipc = f"-ipc{self.ipc}" if self.ipc else ""
        readable = f"{self.dataset}{ipc}-{self.method}-{self.network}-w{self.width}-seed{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', readable)[:NAME_LENGTH]}-{self.identity(config)}"

    def __str__(self) -> str:
        ipc = f"ipc {self.ipc}" if self.ipc else "all images"
        return f"{self.method} on {self.dataset}, {ipc}, width {self.width}, seed {self.seed}"


@dataclass(frozen=True)
class Question:
    """An evaluation with its configuration, not yet asked of a set."""

    evaluation: str
    config: dict[str, Any]
    """Every field of the evaluation's ``Config``, resolved, as JSON has it: lists for tuples."""
    grows: str | None
    """The field of ``config`` that counts values, which is no part of the identity."""

    def identity(self, sets: Sequence[AskedSet], *, seed: int, device_kind: str, tf32: bool) -> str:
        """8 hexadecimal digits of a hash over the question, the identities of its ``sets``, and the kind of device."""
        config = {name: value for name, value in self.config.items() if name not in (self.grows, *ROUNDING)}
        asked = [[each["distillation"], each["step"]] for each in sets]
        return record.identity(self.evaluation, config, asked, seed, device_kind, tf32)

    @property
    def wanted(self) -> int | None:
        """How many values are asked for; None where the evaluation does not grow."""
        return None if self.grows is None else int(self.config[self.grows])


@dataclass(frozen=True)
class Job:
    """A distillation with its configuration, the questions asked of it, and where the process that runs it works."""

    distillation: Distillation
    config: dict[str, Any]
    """Every hyper-parameter, resolved, as JSON has it: lists for tuples."""
    asked: dict[str, str]
    """``budget`` and ``protocol``, for the record: words for the settings above."""
    questions: tuple[Question, ...]
    source: str
    """The data set as ``benchmarks.datasets`` takes it: a name or ``folder:PATH``."""
    device: str
    data_root: str
    cache: str
    folder: str
    """The folder of the distillation."""
    command: str
    """The command line of the run, for the record."""
    curve_points: int = 0
    """Log-spaced steps at which the synthetic set is kept, and its accuracy asked for."""
    reduced: bool = False
    """Whether less is prepared than the method needs, because only the cost of a step is asked for."""
    set_bytes: int = 0
    """About how many bytes the file of the set takes."""
    tf32: bool = False
    """Whether the evaluations may round to TF32."""
    time_limit_seconds: float | None = None
    """No part of an identity: a result that a limit did not stop is the same without it."""
    cell_timeout_seconds: float | None = None
    """The process is killed where it shows no sign of life for so long; no part of an identity either."""
    checkpoint_seconds: float = 300.0
    """Between two checkpoints of the distillation; no part of an identity either."""
    tensorboard: bool = False
    """Whether events and images are written for TensorBoard as well; no part of an identity either."""
    beside: tuple[Job, ...] = ()
    """Jobs whose steps are taken by turns with those of this one, in one process; each has its own record."""
    before: tuple[Job, ...] = ()
    """Jobs of the earlier sets of a sequence, whose last set is that of this job: its questions are asked of all of
    them together, and nothing is distilled."""
    force: bool = False
    """Whether questions are answered again that have an answer."""
    place: str = ""
    """Its number in the run, as ``[2/8]``, for lines about it."""
    slots: int = 1
    """Cells of the run, this one among them, that may share the device at a time."""

    @property
    def identity(self) -> str:
        return self.distillation.identity(self.config)

    @property
    def device_kind(self) -> str:
        """``cpu`` or ``cuda``: where this job runs."""
        return self.device.partition(":")[0]

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def key(self) -> tuple[str, ...]:
        """The folders of the sets that it is about: jobs with the same key are one."""
        return (*(job.folder for job in self.before), self.folder)

    def __str__(self) -> str:
        if self.before:
            count = len(self.before)
            return f"{self.distillation}, and the {count} set{'s' if count > 1 else ''} before it"
        if self.distillation.method == WHOLE_DATA:
            recipes = {str(q.config["protocol"]) for q in self.questions if "protocol" in q.config}
            return f"{self.distillation}{', recipe ' if recipes else ''}{', '.join(sorted(recipes))}"
        if not self.beside:
            return str(self.distillation)
        return f"{self.distillation.interleaved} by turns: {self.distillation}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls._decoded(json.loads(text))

    @classmethod
    def _decoded(cls, values: dict[str, Any]) -> Job:
        parts = {
            "distillation": Distillation(**values["distillation"]),
            "questions": tuple(Question(**question) for question in values["questions"]),
            **{name: tuple(map(cls._decoded, values[name])) for name in ("beside", "before")},
        }
        return cls(**{**values, **parts})
