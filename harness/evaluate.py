"""The command line for sets that are there already: ``python -m harness.evaluate FOLDER`` or ``… FILE --name NAME``.

A folder of distillations, however deep: every set is asked what it was not asked before. Files that others publish: the
set is copied into a folder of its own, and stands beside the distilled ones from then on, without a cost. Exit status
as of ``harness.run``.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from benchmarks import DATASETS, NETWORKS, PREPROCESSINGS
from benchmarks.data.views import base_name
from benchmarks.data.views import split as split_views
from benchmarks.errors import UserError
from benchmarks.protocols import PROTOCOLS
from harness import evaluations
from harness.command_line import Parser, end, exit_status, file_path, long_parser
from harness.launch.local import Launcher, launch
from harness.plan.budgets import BUDGETS, COST
from harness.plan.jobs import Distillation, Job
from harness.plan.options import describe, split
from harness.plan.pending import asks, reason_to_distil
from harness.plan.planning import asked_configs, check_networks, device_of, load_data, questions
from harness.plan.request import FILE_FIELDS, EvaluateRequest, add_flags, told
from harness.records import record
from harness.records.record import RECORD, SET, Distilled
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
        "set of DC, DSA or DM (.pt), of MTT (images_best.pt labels_best.pt), of FRePo or KIP (.npz),\n"
        "or of this suite (.safetensors).",
        f"data sets       {', '.join(DATASETS)},\n                folder:PATH\n"
        f"evaluations     {', '.join(evaluations.names())}\n"
        f"preprocessings  {', '.join(PREPROCESSINGS)}\n"
        f"protocols       {', '.join(('native', *PROTOCOLS))}\nnetworks        {', '.join(NETWORKS)}\n\n"
        "--evaluations NAMES --help shows the options of these evaluations, as --EVALUATION.OPTION.",
    )
    parser.add_argument("paths", type=file_path, nargs="*", metavar="PATH", help="a folder, or the files of one set")
    add_flags(parser, EvaluateRequest)
    return parser


def main(arguments: Sequence[str] | None = None, *, launcher: Launcher = launch, program: str = PROGRAM) -> int:
    """Run the command line ``arguments`` (by default those of the process); returns the exit status.

    ``launcher``: runs the jobs. ``program``: what the user calls this command.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program, launcher))


def parse(arguments: Sequence[str], program: str = PROGRAM) -> tuple[list[Path], dict[str, Any]]:
    """The paths of a command line, and the fields of `EvaluateRequest` that it sets.

    Raises UserError for what is wrong without a look into the files or the data.
    """
    others, options = split(arguments, evaluations.names())
    parser = _parser(program)
    parsed = parser.parse(others)
    fields = told(parsed, EvaluateRequest) | {"options": options, "command": shlex.join([*program.split(), *arguments])}
    request = EvaluateRequest(**fields)
    if parsed.help:
        parser.print_help()
        if request.evaluations:
            configs = asked_configs(request, request.evaluations, request.budget or "quick")
            print(f"\n{describe(configs)}")
        sys.exit(0)
    if not parsed.paths:
        raise UserError(f"no folder or file is named; for instance: {program} results/local --protocol common")
    return parsed.paths, fields


def _main(arguments: Sequence[str], program: str, launcher: Launcher) -> int:
    paths, fields = parse(arguments, program)
    first = paths[0]
    if not any(path.is_dir() or _in_its_folder(path) for path in paths):
        from harness.plan.published import job_of

        request = EvaluateRequest(**{"protocol": "common", **fields})
        job, lines = job_of(paths, request)
        for line in lines:
            say(line)
        return carry_out([job], request.output, launcher, force=False)
    if len(paths) > 1:
        raise UserError("name one folder, or the files of one set")
    if left := [name for name in FILE_FIELDS if name in fields]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
        raise UserError(f"{flags}: that is for files of others, and the records in {first} know it; leave it out")
    folder = first if first.is_dir() else first.parent
    output = folder.resolve().parent if (folder / RECORD).is_file() else folder
    return carry_out(_jobs(folder, fields), output, launcher, force=False)


def _in_its_folder(path: Path) -> bool:
    """Whether ``path`` is a set of this suite with the record beside it that knows all about it."""
    return path.name == SET and (path.parent / RECORD).is_file()


def _jobs(folder: Path, fields: Mapping[str, Any]) -> list[Job]:
    """A job for every set in ``folder`` that can be evaluated as asked; a line for every other.

    ``fields``: what the command line says. Raises UserError where no set can.
    """
    from benchmarks.folders import default_cache, default_root

    all_distilled, damaged = record.read_all(folder)
    for line in damaged:
        say(line)
    if not all_distilled:
        raise UserError(f"no distilled set in {folder}")
    request = EvaluateRequest(**fields)
    device, root, cache = device_of(request), request.data_root or default_root(), request.cache or default_cache()
    asked_configs(request, request.asked_evaluations, "quick")  # an option that is wrong is wrong of all sets

    @functools.cache
    def data(source: str, image_size: int | None) -> RawData:
        return load_data(source, root, cache, dataclasses.replace(request, image_size=image_size))

    jobs = []
    for distilled in all_distilled:
        try:
            job = _job(distilled, fields, device, root, cache)
            of = job.distillation
            if any(asks(job, distilled.record)):  # data that is not needed need not be there
                raw = data(job.source, of.image_size)
                if raw.fingerprint != of.data_fingerprint:
                    raise UserError(f"it was made from other images than those of {job.source}")
                check_networks(job, raw)
            jobs.append(job)
        except UserError as reason:
            say(f"{distilled.folder.name}: left out, {reason}")
    if not jobs:
        raise UserError(f"no set in {folder} can be evaluated so; the lines above say why")
    return jobs


def _job(distilled: Distilled, fields: Mapping[str, Any], device: str, root: Path, cache: Path) -> Job:
    """The job that asks of a set what ``fields`` say, and else what it was asked before.

    Raises UserError, the reason alone, where the set cannot be evaluated so.
    """
    written, before = distilled.record, distilled.record["asked"]
    asked_before = {"budget": before["budget"] if before["budget"] in BUDGETS.keys() - {COST} else "quick"}
    if before["protocol"] in EvaluateRequest.known_protocols:
        asked_before["protocol"] = before["protocol"]
    request = EvaluateRequest(**{**asked_before, **fields})
    assert request.budget is not None
    distillation = Distillation(**written["distillation"])
    if written["status"] != "ok":
        raise UserError(f"its status is {written['status']}")
    if distillation.cost_only:
        raise UserError("only the cost of its steps was asked for")
    source = distillation.dataset
    if source.startswith("folder:"):
        # The place where they lay when it was distilled; the fingerprint tells whether they still do.
        base = base_name(request.dataset or written["provenance"].get("source") or "")
        if not base.startswith("folder:") or not (request.dataset or Path(base.removeprefix("folder:")).is_dir()):
            raise UserError(f"its images are those of {distillation.dataset}: say --dataset folder:PATH")
        source = base + split_views(distillation.dataset)[1]
    elif request.dataset not in (None, source):
        raise UserError(f"it was distilled from {source}")
    if request.image_size not in (None, distillation.image_size):
        raise UserError(f"its images have the size {distillation.image_size or 'of the data set'}")
    native = request.protocol
    if native == "native":
        if distillation.method not in methods.names():
            raise UserError(f"{distillation.method} has no native protocol here: name a --protocol")
        native = methods.get(distillation.method).PROTOCOL
    asked = asked_configs(request, request.asked_evaluations, request.budget)
    job = Job(
        distillation=distillation,
        config=written["config"],
        asked=before,
        questions=questions(asked, distillation, native),
        source=source,
        device=device,
        data_root=str(root),
        cache=str(cache),
        folder=str(distilled.folder),
        command=request.command,
        tf32=request.tf32,
        time_limit_seconds=request.time_limit,
        force=request.force,
    )
    for question in job.questions:
        name = question.config.get("protocol", before["protocol"])
        if name != before["protocol"]:  # by which it was distilled, or which was named for its files
            expected = PROTOCOLS[name].preprocess(distillation.dataset, distillation.ipc)
            if expected != distillation.preprocess:
                own = distillation.preprocess
                raise UserError(f"its images are preprocessed by {own}, and those of protocol {name} by {expected}")
    if reason := reason_to_distil(job, written):
        raise UserError(reason)
    return job


if __name__ == "__main__":
    end(main())
