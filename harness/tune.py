"""Tune methods alike: ``python -m harness.tune --methods all --dataset mnist --trials 12``.

Every method gets the same number of trials, and each trial the same seconds (`harness.plan.trials`). A trial is a cell
like any other: it is recorded, skipped where it has a result, and run by the same launchers. The best setting is that
with the highest accuracy on held-out training images, in the mean over data sets and ipcs. Exit status as of
``harness.run``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shlex
import sys
from collections.abc import Sequence

import methods
from benchmarks.data.names import LISTED
from benchmarks.errors import UserError
from harness import launch
from harness.command_line import command, end, listed, long_parser
from harness.launch import LAUNCHERS, QUEUES, Launcher
from harness.listing import hyperparameters
from harness.plan.jobs import ACCURACY, Job
from harness.plan.options import split
from harness.plan.outlook import outlook
from harness.plan.request import add_flags, told
from harness.plan.trials import Trial, TuneRequest, defaults, defaults_to_check, jobs_of, trials, tuned
from harness.records.files import write_texts
from harness.run import carry_out, say

PROGRAM = "python -m harness.tune"
ALL = "all"
FAILED = 1
"""Exit status of a run in which something has no result."""
# torch and what draws tables are imported where they are used: --help must not wait for them.


def parse(arguments: Sequence[str], program: str = PROGRAM) -> TuneRequest:
    """The request of a command line. Raises UserError for what is wrong without a look at the data."""
    known = methods.names()
    others, options = split(arguments, [*known, ACCURACY, *LAUNCHERS])
    parser = long_parser(
        program,
        f"{program} --methods {ALL} --dataset NAMES [options] [--METHOD.HYPER-PARAMETER VALUE]",
        "Try as many settings for every method, each for as many seconds, and show the best of them. They are\n"
        "scored on training images that were held out. A plural takes a comma list; lists make a grid.",
        f"{listed('methods', [ALL, *known], 12)}\n"
        f"{listed('data sets', LISTED, 12)}\n"
        f"launchers   {', '.join(LAUNCHERS)}",
    )
    add_flags(parser, TuneRequest)
    parsed = parser.parse(others)
    if parsed.help:
        parser.print_help()
        if parsed.methods and ALL not in parsed.methods:
            print(f"\n{hyperparameters(parsed)}")
        sys.exit(0)
    for flag, value in (("--methods", parsed.methods), ("--dataset", parsed.datasets)):
        if value is None:
            raise UserError(f"{flag} is missing; for instance: {program} --methods {ALL} --dataset mnist")
    fields = told(parsed, TuneRequest) | {"options": options, "command": shlex.join([*program.split(), *arguments])}
    if ALL in parsed.methods:
        fields["methods"] = tuple(known)
    return TuneRequest(**fields)


@command(PROGRAM)
def main(arguments: Sequence[str], program: str, launcher: Launcher | None = None) -> int:
    """Try settings. ``launcher`` runs the jobs; None: the one that the command line names."""
    from harness.reports import tuning

    request = parse(arguments, program)
    if without := [name for name in request.methods if not tuned(request, name)]:
        line = f"{', '.join(without)}: nothing to tune, as TUNE names no field that the command line leaves open"
        left = tuple(name for name in request.methods if name not in without)
        if not left:
            raise UserError(line)
        say(f"left out: {line}")
        options = {name: words for name, words in request.options.items() if name not in without}
        request = dataclasses.replace(request, methods=left, options=options)
    usual, to_check = defaults(request), defaults_to_check(request)  # data that are missing are noticed now
    refused = list[str]()

    def own_jobs(jobs: Sequence[Job], name: str) -> list[Job]:
        return [job for job in jobs if job.distillation.method == name]

    of_method = {
        name: trials(request, name, own_jobs(usual, name), own_jobs(to_check, name), refused)
        for name in request.methods
    }
    for line in refused:
        say(line)
    chosen = dict[str, Trial]()

    def tried(own: Sequence[Trial], jobs: Sequence[Job]) -> list[tuning.Tried]:
        return [tuning.tried(trial, jobs_of(trial, jobs)) for trial in own]

    def checked(own: Sequence[Trial]) -> list[Trial]:
        """The default and the best of a method, where they are two."""
        best = chosen.get(own[0].method, own[0])
        return [own[0], best] if best is not own[0] else []

    def show(_: object) -> str:
        results = [(tried(own, usual), tried(checked(own), to_check)) for own in of_method.values()]
        text, files = tuning.report(request, results)
        write_texts(files, request.output, "the table of trials")
        return text

    def carried_out(wanted: TuneRequest, jobs: Sequence[Job], launcher: Launcher) -> int:
        for line in outlook([wanted], jobs, wanted.output):
            say(line)
        queue = wanted.launcher in QUEUES
        return carry_out(jobs, wanted.output, launcher, force=wanted.force, queue=queue, show=show)

    with contextlib.nullcontext(launcher) if launcher else launch.launcher(request, request.output) as launcher:
        # Trial by trial, so that a run that is stopped has done as much for every method.
        together = filter(None, itertools.chain(*itertools.zip_longest(*of_method.values())))
        status = carried_out(request, [job for trial in together for job in jobs_of(trial, usual)], launcher)
        if status not in (0, FAILED) or not request.check:
            return status
        for name, own in of_method.items():
            results = tried(own, usual)
            if any(tuning.MISSING in each.failures for each in results):  # the run was stopped
                say(f"{name}: not checked, as trials are not done")
            else:
                chosen[name] = tuning.best(results).trial
        jobs = [job for own in of_method.values() for trial in checked(own) for job in jobs_of(trial, to_check)]
        checking = dataclasses.replace(request, datasets=request.check, check=())
        if chosen and not jobs:
            say("nothing to check: no setting was better than the default of its method")
        return (carried_out(checking, jobs, launcher) if jobs else 0) or status


if __name__ == "__main__":
    end(main())
