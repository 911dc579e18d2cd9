"""The command line for sets that are there already: ``python -m harness.evaluate FOLDER`` or ``… FILE --name NAME``.

A folder of distillations, however deep: every set is asked what it was not asked before. Files that others publish: the
set is copied into a folder of its own, and stands beside the distilled ones from then on, without a cost. Exit status
as of ``harness.run``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from benchmarks import NETWORKS, PREPROCESSINGS
from benchmarks.data.names import FORMS, LISTED, kind_of, place_of
from benchmarks.data.views import base_name
from benchmarks.data.views import split as split_views
from benchmarks.errors import UserError
from benchmarks.protocols import PROTOCOLS
from harness import evaluations, launch
from harness.command_line import Parser, command, end, file_path, listed, long_parser
from harness.launch import LAUNCHERS, QUEUES, Launcher
from harness.listing import launcher_options
from harness.plan.budgets import BUDGETS, COST
from harness.plan.jobs import Distillation, Job
from harness.plan.options import describe, split
from harness.plan.pending import asks, reason_to_distil
from harness.plan.planning import (
    Inquiry,
    asked_configs,
    check_networks,
    device_of,
    inquiries_of,
    load_data,
    merged,
    questions,
)
from harness.plan.request import FILE_FIELDS, EvaluateRequest, add_flags, told
from harness.records import record
from harness.records.record import RECORD, SET, Distilled, Record
from harness.run import carry_out, say

if TYPE_CHECKING:
    from benchmarks.datasets import RawData

PROGRAM = "python -m harness.evaluate"
# torch is imported where it is used: --help must not wait for it.


def _parser(program: str) -> Parser:
    parser = long_parser(
        program,
        f"{program} FOLDER [options]\n"
        f"       {program} FILE [FILE …] --dataset NAME --preprocess NAME --name NAME [options]",
        "Ask questions of distilled sets that are there already. FOLDER: results of this suite. FILE: a\n"
        "set of DC, DSA or DM (.pt), of IDC, DREAM or NCFM (.pt), of MTT (images_best.pt labels_best.pt),\n"
        "of FRePo or KIP (.npz), of this suite (.safetensors), a folder of pictures by class, or of such sets.",
        f"{listed('data sets', LISTED, 16)}\n"
        f"evaluations     {', '.join(evaluations.names())}\n"
        f"preprocessings  {', '.join(PREPROCESSINGS)}\n"
        f"protocols       {', '.join(('native', *PROTOCOLS))}\n"
        f"{listed('networks', NETWORKS, 16)}\n"
        f"launchers       {', '.join(LAUNCHERS)}\n\n"
        "--evaluations NAMES --help shows the options of these evaluations, as --EVALUATION.OPTION;\n"
        "--launcher NAME --help those of a launcher.",
    )
    parser.add_argument("paths", type=file_path, nargs="*", metavar="PATH", help="a folder, or the files of one set")
    add_flags(parser, EvaluateRequest)
    return parser


def parse(arguments: Sequence[str], program: str = PROGRAM) -> tuple[list[Path], dict[str, Any]]:
    """The paths of a command line, and the fields of `EvaluateRequest` that it sets.

    Raises UserError for what is wrong without a look into the files or the data.
    """
    others, options = split(arguments, [*evaluations.names(), *LAUNCHERS])
    parser = _parser(program)
    parsed = parser.parse(others)
    fields = told(parsed, EvaluateRequest) | {"options": options, "command": shlex.join([*program.split(), *arguments])}
    request = EvaluateRequest(**fields)
    if parsed.help:
        parser.print_help()
        configs = launcher_options(parsed.launcher)
        if request.evaluations:
            configs = asked_configs(request, request.evaluations, request.budget or "quick") | configs
        if configs:
            print(f"\n{describe(configs)}")
        sys.exit(0)
    if not parsed.paths:
        raise UserError(f"no folder or file is named; for instance: {program} results/local --protocol common")
    return parsed.paths, fields


@command(PROGRAM)
def main(arguments: Sequence[str], program: str, launcher: Launcher | None = None) -> int:
    """Ask more of sets that are there. ``launcher`` runs the jobs; None: the one that the command line names."""
    paths, fields = parse(arguments, program)

    def run(jobs: Sequence[Job], request: EvaluateRequest, output: Path) -> int:
        with contextlib.nullcontext(launcher) if launcher else launch.launcher(request, output) as chosen:
            return carry_out(jobs, output, chosen, force=False, queue=request.launcher in QUEUES)

    first = paths[0]
    if not any(_is_of_records(path) for path in paths):
        from harness.plan.published import sets_in

        request = EvaluateRequest(**{"protocol": "common", **fields})
        sets = sets_in(first) if len(paths) == 1 and first.is_dir() else [paths]
        return run(_published(sets or [paths], request), request, request.output)
    if len(paths) > 1:
        raise UserError("name one folder, or the files of one set")
    if left := [name for name in FILE_FIELDS if name in fields]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
        raise UserError(f"{flags}: that is for files of others, and the records in {first} know it; leave it out")
    folder = first if first.is_dir() else first.parent
    output = folder.resolve().parent if (folder / RECORD).is_file() else folder
    return run(_jobs(folder, fields), EvaluateRequest(**fields), output)


def _is_of_records(path: Path) -> bool:
    """Whether ``path`` is a folder with records, or a set of this suite with its record beside it."""
    if path.is_dir():
        from harness.plan.published import sets_in

        return any(record.folders(path)) or not sets_in(path)
    return path.name == SET and (path.parent / RECORD).is_file()


def _published(sets: Sequence[Sequence[Path]], request: EvaluateRequest) -> list[Job]:
    """The jobs about sets of others; a line for each that cannot be asked. Raises UserError where none can."""
    from harness.plan.published import jobs_of

    jobs: list[Job] = []
    for paths in sets:
        named = paths[0].parent if len(paths) > 1 or paths[0].name == SET else paths[0]
        own = request
        try:
            if len(sets) > 1 and request.name is None:
                own = dataclasses.replace(request, name=named.name if named.is_dir() else named.stem)
            for job, lines in jobs_of(paths, own):
                jobs.append(job)
                for line in lines:
                    say(line)
        except UserError as reason:
            if len(sets) == 1:
                raise
            say(f"{named}: left out, {reason}")
    if not jobs:
        raise UserError("no set there can be evaluated so; the lines above say why")
    return jobs


def _jobs(folder: Path, fields: Mapping[str, Any]) -> list[Job]:
    """A job for every set and every sequence of sets in ``folder`` that can be asked; a line for every other.

    ``fields``: what the command line says. Raises UserError where none can.
    """
    from benchmarks.folders import default_cache, default_root

    all_distilled, damaged = record.read_all(folder)
    for line in damaged:
        say(line)
    if not all_distilled:
        raise UserError(f"no distilled set in {folder}")
    request = EvaluateRequest(**fields)
    device, root, cache = device_of(request), request.data_root or default_root(), request.cache or default_cache()
    inquiries_of(request, request.asked_evaluations, "quick")  # an option that is wrong is wrong of all sets

    @functools.cache
    def data(source: str, image_size: int | None) -> RawData:
        return load_data(source, root, cache, dataclasses.replace(request, image_size=image_size))

    def checked(job: Job, written: Record) -> Job:
        of = job.distillation
        if any(asks(job, written)):  # data that is not needed need not be there
            raw = data(job.source, of.image_size)
            if raw.fingerprint != of.data_fingerprint:
                raise UserError(f"it was made from other images than those of {job.source}")
            check_networks(job, raw)
        return job

    jobs, sequences = [], dict[tuple[str, str, tuple[str, ...]], _Sequence]()
    for distilled in all_distilled:
        try:
            asked = _asked(distilled, fields)
            job = _job(distilled, asked.request, device, root, cache)
            name, several = job.distillation.dataset, [each for each in asked.inquiries if len(each.views) > 1]
            own = [each for each in asked.inquiries if len(each.views) == 1 and name.endswith(each.views[0])]
            places = [(each.views, view) for each in several for view in each.views if name.endswith(view)]
            for views, view in dict.fromkeys(places):
                base = name.removesuffix(view)
                like = {**job.distillation.to_dict(), "dataset": base, "data_fingerprint": ""}
                key = record.identity(like, job.config), base, views
                sequences.setdefault(key, _Sequence({}, asked)).sets.setdefault(view, distilled)
            if own:
                jobs.append(checked(_asking(job, own, asked), distilled.record))
            elif not places:
                suffixes = ", ".join(dict.fromkeys(view for each in asked.inquiries for view in each.views))
                raise UserError(f"asked for are sets distilled from {suffixes}")
        except UserError as reason:
            say(f"{distilled.folder.name}: left out, {reason}")
    for (_, base, views), sequence in sequences.items():
        last = list(sequence.sets.values())[-1]
        method = last.record["distillation"]["method"]
        try:
            if missing := [f"{base}{view}" for view in views if view not in sequence.sets]:
                raise UserError(f"there is no set of {', '.join(missing)}")
            last = sequence.sets[views[-1]]
            *before, job = (_job(sequence.sets[v], sequence.asked.request, device, root, cache) for v in views)
            inquiries = [each for each in sequence.asked.inquiries if each.views == views]
            together = dataclasses.replace(job, before=tuple(before))
            jobs.append(checked(_asking(together, inquiries, sequence.asked), last.record))
        except UserError as reason:
            names = ", ".join(each.evaluation for each in sequence.asked.inquiries if each.views == views)
            say(f"{names} of {method} on {base}: left out, {reason}")
    if not jobs:
        raise UserError(f"no set in {folder} can be evaluated so; the lines above say why")
    return merged(jobs)


@dataclass(frozen=True)
class _Asked:
    """What is asked of a set, with the defaults that it has from what it was asked before."""

    request: EvaluateRequest
    inquiries: tuple[Inquiry, ...]
    native: str
    """The protocol of the method's paper, or the one that is named instead."""
    before: str
    """The protocol by which the set was distilled, or which was named for its files."""


@dataclass(frozen=True)
class _Sequence:
    """Sets that differ in nothing but their views of a data set."""

    sets: dict[str, Distilled]
    """View → the set distilled from it."""
    asked: _Asked


def _asked(distilled: Distilled, fields: Mapping[str, Any]) -> _Asked:
    """What ``fields`` ask of a set, and else what it was asked before.

    Raises UserError, the reason alone, where it has no protocol of its own.
    """
    before, method = distilled.record["asked"], distilled.record["distillation"]["method"]
    asked_before = {"budget": before["budget"] if before["budget"] in BUDGETS.keys() - {COST} else "quick"}
    if before["protocol"] in EvaluateRequest.known_protocols:
        asked_before["protocol"] = before["protocol"]
    request = EvaluateRequest(**{**asked_before, **fields})
    assert request.budget is not None
    native = request.protocol
    if native == "native":
        if method not in methods.names():
            raise UserError(f"{method} has no native protocol here: name a --protocol")
        native = methods.get(method).PROTOCOL
    inquiries = inquiries_of(request, request.asked_evaluations, request.budget)
    return _Asked(request, tuple(inquiries), native, before["protocol"])


def _asking(job: Job, inquiries: Sequence[Inquiry], asked: _Asked) -> Job:
    """``job`` with the questions. Raises UserError, the reason alone, where its images are preprocessed otherwise."""
    of = job.distillation
    job = dataclasses.replace(job, questions=questions(inquiries, of, asked.native))
    for question in job.questions:
        name = question.config.get("protocol", asked.before)
        if name != asked.before:
            expected = PROTOCOLS[name].preprocess(of.dataset, of.ipc)
            if expected != of.preprocess:
                own = of.preprocess
                raise UserError(f"its images are preprocessed by {own}, and those of protocol {name} by {expected}")
    return job


def _job(distilled: Distilled, request: EvaluateRequest, device: str, root: Path, cache: Path) -> Job:
    """The job about a set, with no question yet. Raises UserError, the reason alone, where nothing can be asked."""
    written = distilled.record
    distillation = Distillation(**written["distillation"])
    if written["status"] != "ok":
        raise UserError(f"its status is {written['status']}")
    if distillation.cost_only:
        raise UserError("only the cost of its steps was asked for")
    source = distillation.dataset
    if kind := kind_of(source):
        # The place where they lay when it was distilled; the fingerprint tells whether they still do.
        base = base_name(request.dataset or written["provenance"].get("source") or "")
        if kind_of(base) != kind or (kind == "folder" and not (request.dataset or place_of(base).is_dir())):
            raise UserError(f"its images are those of {distillation.dataset}: say --dataset {FORMS[kind]}")
        source = base + split_views(distillation.dataset)[1]
    elif request.dataset not in (None, source, base_name(source)):
        raise UserError(f"it was distilled from {source}")
    if request.image_size not in (None, distillation.image_size):
        raise UserError(f"its images have the size {distillation.image_size or 'of the data set'}")
    job = Job(
        distillation=distillation,
        config=written["config"],
        asked=written["asked"],
        questions=(),
        source=source,
        device=device,
        data_root=str(root),
        cache=str(cache),
        folder=str(distilled.folder),
        command=request.command,
        tf32=request.tf32,
        time_limit_seconds=request.time_limit,
        cell_timeout_seconds=request.cell_timeout,
        force=request.force,
    )
    if reason := reason_to_distil(job, written):
        raise UserError(reason)
    return job


if __name__ == "__main__":
    end(main())
