"""The command line: ``python -m harness.run --methods frepo,mtt --dataset cifar100``.

A request spans a grid of distillations, each with questions asked of its set. What has a result is skipped; the rest
runs in a process for each distillation, and a table of all ends the run. Exit status: 0 everything has a result (out of
memory, a time limit and divergence are results), 1 something failed, 2 the request is wrong (nothing was run), 75 a
signal stopped it and the same command goes on, 130 the same for Ctrl-C, 141 the reader of the output is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import methods
from benchmarks import DATASETS, NETWORKS
from benchmarks.errors import UserError, printable
from harness import evaluations
from harness.command_line import Parser, end, exit_status, listed, long_parser
from harness.launch.local import Launcher, started
from harness.listing import hyperparameters, listing
from harness.plan.budgets import COST
from harness.plan.experiments import EXPERIMENTS, requests
from harness.plan.jobs import Job
from harness.plan.options import split
from harness.plan.outlook import outlook
from harness.plan.pending import all_asks, asks, count, existing, last_set, reason_to_distil
from harness.plan.planning import check_writable, merged, plan
from harness.plan.request import FLOOR, Request, add_flags, names, told
from harness.records import record
from harness.records.files import only_runner, steps_in
from harness.records.record import CHECKPOINT, EVALUATIONS, FINAL, Distilled, EvaluationRecord, Record
from harness.startup import INTERRUPTED
from harness.stopping import NOT_DONE, Stopped

PROGRAM = "python -m harness.run"
BY_USER = "stopped"
"""Why a run ended: Ctrl-C."""
AGAIN = ".again"
"""The folder inside the output where a set is distilled that is there already."""
# torch, tyro and pandas are imported where they are used: --help must not wait for them.


def _parser(program: str) -> Parser:
    parser = long_parser(
        program,
        f"{program} --methods NAMES --dataset NAMES [options] [--METHOD.HYPER-PARAMETER VALUE]\n"
        f"       {program} --experiment NAME [--only NAMES] [options]",
        "Distil data sets, measure what it costs, test what it gives. A plural takes a comma list; lists make a grid.",
        f"methods     {', '.join(methods.names())}\n"
        f"data sets   {', '.join(DATASETS)},\n            folder:PATH\n"
        f"{listed('networks', NETWORKS, 12)}\n"
        f"evaluations {', '.join(evaluations.names())}\n"
        f"experiments {', '.join(EXPERIMENTS)}\n\n"
        "--methods NAMES --help shows the hyper-parameters of these methods, as --METHOD.HYPER-PARAMETER;\n"
        "--evaluations NAMES --help those of evaluations.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="methods with their papers, data sets, networks, protocols; nothing is run")
    add("--experiment", metavar="NAME", help="a named request, with figures at the end; any other flag overrides")
    add("--only", type=names, metavar="NAMES", help="of an experiment: these methods, data sets and parts")
    add_flags(parser, Request)
    return parser


def main(
    arguments: Sequence[str] | None = None,
    *,
    launcher: Launcher | None = None,
    program: str = PROGRAM,
) -> int:
    """Run the command line ``arguments`` (by default those of the process); returns the exit status.

    ``launcher``: runs the jobs; None: a process for each. ``program``: what the user calls this command.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program, launcher))


def _main(arguments: Sequence[str], program: str, launcher: Launcher | None) -> int:
    others, options = split(arguments, [*methods.names(), *evaluations.names()])
    parser = _parser(program)
    parsed = parser.parse(others)
    if parsed.help:
        parser.print_help()
        if parsed.methods or parsed.evaluations:
            print(f"\n{hyperparameters(parsed)}")
        return 0
    if parsed.list:
        print(listing())
        return 0
    if parsed.experiment is None:
        for flag, value in (("--methods", parsed.methods), ("--dataset", parsed.datasets)):
            if value is None:
                raise UserError(f"{flag} is missing; for instance: {program} --methods frepo,mtt --dataset digits")
        if parsed.only:
            raise UserError("--only runs a part of an experiment: it means nothing without --experiment")
    fields = told(parsed, Request) | {"options": options, "command": shlex.join([*program.split(), *arguments])}
    if parsed.experiment is None:
        wanted = [Request(**fields)]
    else:
        wanted = requests(parsed.experiment, fields, parsed.only or ())
    if not parsed.no_random:  # after what was typed has been checked
        wanted = [_with_floor(request) for request in wanted]
    if parsed.forecast:
        from harness.measure import forecast

        print(forecast.table(_planned(wanted), parsed.memory_limit))
        return 0
    with contextlib.nullcontext(launcher) if launcher else started() as launcher:
        jobs = _planned(wanted)
        for line in outlook(wanted, jobs, wanted[0].output):
            say(line)
        if FLOOR not in (parsed.methods or ()) and any(FLOOR in request.methods for request in wanted):
            say(f"{FLOOR} runs as well, for comparison (--no-random leaves it out).")
        force = any(request.force for request in wanted)
        return carry_out(jobs, wanted[0].output, launcher, force=force, experiment=parsed.experiment)


def _planned(wanted: Sequence[Request]) -> list[Job]:
    """The jobs of all that is ``wanted``, and a line for what is left out. Raises UserError where nothing is left."""
    left_out: list[str] = []
    jobs = merged(job for request in wanted for job in plan(request, left_out))
    lines = list(dict.fromkeys(left_out))
    if not jobs:
        raise UserError("; ".join(lines))
    for line in lines:
        say(f"left out: {line}")
    return jobs


def carry_out(
    jobs: Sequence[Job], output: Path, launcher: Launcher, *, force: bool, experiment: str | None = None
) -> int:
    """Do what is left of ``jobs``, or with ``force`` all; then the tables, and those and the figures of ``experiment``.

    Returns the exit status. Raises UserError, and runs nothing, while another run works in ``output``, and where a
    record there is of a newer version of the suite.
    """
    with contextlib.ExitStack() as stack:
        # A folder below ``output`` may be that of another run.
        parents = {folder.resolve(): folder for folder in (*(job.path.parent for job in jobs), output)}
        for folder in parents.values():
            stack.enter_context(only_runner(folder, jobs[0].command if jobs else PROGRAM))
        record.refuse_newer(output)
        _finish_exchange(output)
        run = _Run(jobs, output, force=force)
        run.through(launcher)
        written = _report(run.distilled(), output, experiment) if run.done else True
    if run.stopped is not None:
        on = " without --force goes on with those that have no result" if force else " goes on with the next"
        print(file=sys.stderr)
        cells = sum(1 + len(job.beside) for job in jobs)
        if run.halfway:
            on = f" goes on with {run.halfway}"
        say(f"{run.stopped}; {len(run.done)} of {cells} cells are done and kept in {output}; the same command{on}")
        return run.status
    return 0 if written and not run.failed else 1


def _report(distilled: Sequence[Distilled], output: Path, experiment: str | None) -> bool:
    """Print the table of this run, and write the tables of everything in ``output``. Returns whether that went well."""
    from harness import report
    from harness.reports.paper_tables import has_table

    print(report.show(distilled))
    # The files tell everything that lies there: a smaller run takes no measured row away.
    kept, damaged = record.read_all(output)
    for line in damaged:
        say(line)
    try:
        report.write(kept, output)
        count = f"{len(kept)} record{'s' if len(kept) > 1 else ''}"
        say(f"table.md, table.tex and table.csv in {output} tell of the {count} there")
        if experiment is not None:
            _draw(kept, output, images=EXPERIMENTS[experiment].images)
            if has_table(experiment):
                print(f"\n{report.write_experiment(experiment, kept, output)}")
    except UserError as error:
        say(f"error: {error}")
        return False
    return True


def _with_floor(request: Request) -> Request:
    """``request`` with real images drawn at random among its methods, where accuracies are asked for."""
    if FLOOR in request.methods or request.budget == COST:
        return request
    return dataclasses.replace(request, methods=(*request.methods, FLOOR))


def _draw(distilled: Sequence[Distilled], folder: Path, *, images: bool) -> None:
    """Exponents and figures; ``images``: those of the sets as well.

    Without the packages that draw, a line says so and nothing is lost.
    """
    from harness import figures
    from harness.reports import images as sets
    from harness.reports import scaling

    written = scaling.write(distilled, folder)
    try:
        written += figures.write(distilled, folder)
        written += sets.write(distilled, folder) if images else []
    except UserError as error:
        say(str(error))
    if written:
        say(f"and {', '.join(path.name for path in written)}")


class _Run:
    """The jobs of a run on their way through a launcher, which may take them in any order."""

    def __init__(self, jobs: Sequence[Job], output: Path, *, force: bool) -> None:
        self.jobs, self.output, self.force = jobs, output, force
        self.done: list[Job] = []
        self.failed = False
        """Whether anything has no result, or one that did not come from this run although it was to."""
        self.stopped: str | None = None
        """Why the run ended before its jobs did."""
        self.status = 1
        """The exit status, where it ended so."""
        self.halfway = ""
        """The cell that was under way then and will be continued, in words."""
        self._replaced: dict[str, Job] = {}
        """Folder where a job runs that has a result already → the job."""
        self._begun: dict[tuple[str, ...], tuple[str, float, dict[Path, os.stat_result]]] = {}
        """Key of a job → number and name of its job, when it began, and the answers that were there."""
        self._said = ""
        """Place of the job that the last line was about."""

    def through(self, launcher: Launcher) -> None:
        try:
            numbered = list(enumerate(self.jobs, 1))
            # In whatever order a launcher takes jobs, all sets are there before a question about several is asked.
            for part in ([job for job in numbered if bool(job[1].before) == late] for late in (False, True)):
                if part:
                    with contextlib.closing(launcher(self._left(part))) as ended:
                        for job in ended:
                            self._finish(job)
        except KeyboardInterrupt:
            self.stopped, self.status = BY_USER, INTERRUPTED
        except Stopped as error:
            self.stopped = BY_USER if error.number == signal.SIGINT else str(error)
            self.status = INTERRUPTED if error.number == signal.SIGINT else NOT_DONE
            self.halfway = self._halfway()
        except UserError as error:
            self.stopped = f"stopped, as {error}"
        except BrokenPipeError:  # the reader of our lines is gone
            raise
        except OSError as error:  # such as a full disk, or no room for another process
            place = "" if error.filename is None else f"{error.filename}: "
            self.stopped = f"stopped, as {printable(place)}{error.strerror or error}"
        _finish_exchange(self.output)

    def _halfway(self) -> str:
        """The cell that had been begun and is not one of ``--force``, and the step from which it goes on."""
        for (*_, folder), (place, _, _) in self._begun.items():
            if folder not in self._replaced:
                steps = steps_in(Path(folder) / CHECKPOINT)
                return f"{place}{f', after its step {max(steps)}' if steps else ''}"
        return ""

    def distilled(self) -> list[Distilled]:
        """The results of the jobs that are done, as far as their files can be read."""
        return [each for path in dict.fromkeys(job.path for job in self.done) for each in record.read_all(path)[0]]

    def _left(self, numbered: Iterable[tuple[int, Job]]) -> Iterator[Job]:
        """The jobs with anything left to do, one line before each."""
        for number, job in numbered:
            place = f"[{number}/{len(self.jobs)}] {job}"
            before = existing(job)
            if job.before:
                sets = (*job.before, job)
                if missing := next((each for each in sets if last_set(each, existing(each)) is None), None):
                    asked = ", ".join(question.evaluation for question in job.questions)
                    say(f"{place}: {asked} is not asked, as there is no set of {missing.distillation}")
                    self.failed = True
                    continue
                job = dataclasses.replace(job, force=self.force)
                reasons = []
            else:
                reasons = [reason_to_distil(each, existing(each), force=self.force) for each in (job, *job.beside)]
            distils = before is None or any(reason is not None for reason in reasons)
            if before is not None and not distils:
                left = list(asks(job, before))
                if not left:
                    say(f"{place}: {before['status']}, done before on {_where(before)} ({job.path.name})")
                    self.done += [job, *job.beside]
                    continue
                names = ", ".join(dict.fromkeys(ask.question.evaluation for ask in left))
                say(f"{place}: distilled before on {_where(before)}, asked for {names}")
            else:
                say(place)
                for reason in filter(None, reasons):
                    say(f"  {reason}: it is distilled again")
            check_writable(self.output, "the folder")
            if distils:
                first, *others = map(self._apart, (job, *job.beside))
                job = dataclasses.replace(first, beside=tuple(others))
            answers = {path: path.stat() for path in (job.path / EVALUATIONS).glob("*.json")}
            self._begun[job.key] = place, time.monotonic(), answers
            self._said = place
            yield job

    def _apart(self, job: Job) -> Job:
        """``job`` in a folder of its own, if it has a result already: that is out of its way.

        The answers go with it: those about the very same set need not be given again.
        """
        before = existing(job)
        if before is None or before["status"] not in FINAL:
            return job
        if before["status"] == "timeout" and not self.force and steps_in(job.path / CHECKPOINT):
            return job  # it goes on
        folder = self.output / AGAIN / job.path.name
        self._replaced[str(folder)] = job
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(job.path / EVALUATIONS, folder / EVALUATIONS)
        return dataclasses.replace(job, folder=str(folder), force=self.force)

    def _finish(self, job: Job) -> None:
        """Say what became of ``job``, and put it where an earlier result was."""
        place, begun, answers = self._begun.pop(job.key)
        for each in (job, *job.beside):
            after = existing(each)
            if after is None:
                raise UserError(f"{each.path} has no record, or one that cannot be read")
            name = f"{each.distillation.method}: " if job.beside else ""
            seconds = time.monotonic() - begun
            say(f"{'' if self._said == place else place + ':'}  {name}{_outcome(each, after)} ({seconds:.0f} s)")
            self._said = place
            unanswered = any(asks(dataclasses.replace(each, force=False), after))
            if after["status"] not in FINAL or unanswered or (each.force and _any_kept(each, after, answers)):
                self.failed = True
            if each.folder in self._replaced:
                each = self._exchange(self._replaced[each.folder], each, after)
            self.done.append(each)

    def _exchange(self, job: Job, again: Job, after: Record) -> Job:
        """Put the result of ``again`` into the place of that of ``job``, unless the earlier one is worth more."""
        before = existing(job)
        if before is not None and _stays(before, after):
            say("  the earlier result is kept")
            self.failed = True
            with contextlib.suppress(OSError):
                os.replace(again.path / record.LOG, job.path / record.LOG)
        else:
            os.replace(job.path, _aside(job.path))
            os.replace(again.path, job.path)
            shutil.rmtree(_aside(job.path), ignore_errors=True)
        return job


def _any_kept(job: Job, after: Record, answers: Mapping[Path, os.stat_result]) -> bool:
    """Whether any of the ``answers`` that ``job`` was to give again is still the earlier file."""
    paths = [ask.path for ask in all_asks(job, after) if ask.path in answers]
    return any(os.path.samestat(path.stat(), answers[path]) for path in paths)


def _aside(folder: Path) -> Path:
    """The place of ``folder`` while another takes its own; hidden, so that no report reads it."""
    return folder.with_name(f".{folder.name}.earlier")


def _finish_exchange(output: Path) -> None:
    """End what was begun before a kill or an interrupt: a result that was put aside has one that takes its place."""
    for aside in output.glob(".*.earlier"):
        folder = aside.with_name(aside.name.removeprefix(".").removesuffix(".earlier"))
        again = output / AGAIN / folder.name
        if not folder.exists():
            os.replace(again if again.exists() else aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(output / AGAIN, ignore_errors=True)


def _stays(before: Record, after: Record) -> bool:
    """Whether the result ``before`` is kept: a set that is there gives way to a set alone, no result to an error."""
    if after["status"] == "ok":
        return False
    return before["status"] == "ok" or (before["status"] in FINAL and after["status"] not in FINAL)


def _where(before: Record) -> str:
    """Device and, of a processor, threads: neither is in the name of a record, so another's is not measured again."""
    measured = before["provenance"]
    device, threads = measured.get("device") or "an unknown device", measured.get("threads")
    if threads is None or before["distillation"]["device_kind"] != "cpu":
        return str(device)
    return f"{device} with {threads} thread{'s' if threads > 1 else ''}"


def _outcome(job: Job, after: Record) -> str:
    """The result of ``job`` in words: a failure, the values that were asked for, or the seconds of an iteration."""
    if after["status"] != "ok":
        return f"{after['status']}: {after['message']}"
    if answers := [ask.answer for ask in all_asks(job, after) if ask.answer and ask.step is None]:
        return "; ".join(map(_answer, answers))
    samples = after["cost"]["step_seconds"]
    return f"{statistics.median(samples):.3g} s per iteration" if samples else "no whole cycle of steps was timed"


def _answer(answer: EvaluationRecord) -> str:
    """``accuracy 93.21 ± 0.40 %, n = 3``, or why there are no values; before it what was asked, one item of a list."""
    known = evaluations.get(answer["evaluation"])
    item = answer["config"][known.each] if known.each else ""
    about = ", ".join(map(str, item)) if isinstance(item, list) else f"{known.each} {item}" if known.each else ""
    if answer["status"] != "ok":
        about = " ".join(filter(None, (answer["evaluation"], about)))
        return f"{about}: {answer['status']}: {answer['message']}"
    quantities, parts = known.quantities, list[str]()
    for name, values in answer["values"].items():
        quantity = quantities[name]
        title = quantity.title.removesuffix(" (%)")
        scale, form, unit = (100, ".2f", " %") if quantity.percent else (1, ".3g", "")
        mean, std = record.summarise(values if quantity.against is None else values[-1:])
        if mean is not None:
            parts.append(f"{title} {scale * mean:{form}}{'' if std is None else f' ± {scale * std:{form}}'}{unit}")
    return f"{about}{': ' if about else ''}{', '.join(parts)}, n = {count(answer)}"


def say(line: str) -> None:
    """Print ``line`` for the user, on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    end(main())
