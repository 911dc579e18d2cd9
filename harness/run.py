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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import methods
from benchmarks import NETWORKS
from benchmarks.data.names import LISTED
from benchmarks.errors import UserError, printable
from harness import evaluations, launch, progress, stopping
from harness.command_line import Parser, command, end, listed, long_parser
from harness.launch import LAUNCHERS, QUEUES, Launcher
from harness.listing import hyperparameters, listing
from harness.plan.experiments import EXPERIMENTS, requests
from harness.plan.jobs import Job
from harness.plan.options import split
from harness.plan.outlook import outlook
from harness.plan.pending import all_asks, asks, count, existing, last_set, reason_to_distil
from harness.plan.planning import check_writable, merged, plan
from harness.plan.request import FLOOR, Request, add_flags, names, told, with_floor
from harness.records import record
from harness.records.files import only_runner, steps_in
from harness.records.lease import FOLDER, Held, Lease, Lost, Watch, awaited, exchange_of, path_of, take
from harness.records.record import AGAIN, CHECKPOINT, EVALUATIONS, FINAL, Distilled, EvaluationRecord, Record
from harness.startup import INTERRUPTED
from harness.stopping import NOT_DONE, Stopped

PROGRAM = "python -m harness.run"
BY_USER = "stopped"
"""Why a run ended: Ctrl-C."""
TABLES = ".tables"
"""The lease of a run that writes the tables of a folder."""
POLL_SECONDS = 2.0
"""Between two looks at what other runs do."""
MOST_NAMED = 3
"""Cells that are named where a run is stopped."""
# torch, tyro and pandas are imported where they are used: --help must not wait for them.


def _parser(program: str) -> Parser:
    parser = long_parser(
        program,
        f"{program} --methods NAMES --dataset NAMES [options] [--METHOD.HYPER-PARAMETER VALUE]\n"
        f"       {program} --experiment NAME [--only NAMES] [options]",
        "Distil data sets, measure what it costs, test what it gives. A plural takes a comma list; lists make a grid.",
        f"methods     {', '.join(methods.names())}\n"
        f"{listed('data sets', LISTED, 12)}\n"
        f"{listed('networks', NETWORKS, 12)}\n"
        f"evaluations {', '.join(evaluations.names())}\n"
        f"experiments {', '.join(EXPERIMENTS)}\n"
        f"launchers   {', '.join(LAUNCHERS)}\n\n"
        "--methods NAMES --help shows the hyper-parameters of these methods, as --METHOD.HYPER-PARAMETER;\n"
        "--evaluations NAMES --help those of evaluations, --launcher NAME --help those of a launcher.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="methods with their papers, data sets, networks, protocols; nothing is run")
    add("--experiment", metavar="NAME", help="a named request, with figures at the end; any other flag overrides")
    add("--only", type=names, metavar="NAMES", help="of an experiment: these methods, data sets and parts")
    add_flags(parser, Request)
    return parser


@command(PROGRAM)
def main(arguments: Sequence[str], program: str, launcher: Launcher | None = None) -> int:
    """Distil, measure, evaluate, report. ``launcher`` runs the jobs; None: the one that the command line names."""
    others, options = split(arguments, [*methods.names(), *evaluations.names(), *LAUNCHERS])
    parser = _parser(program)
    parsed = parser.parse(others)
    if parsed.help:
        parser.print_help()
        if parsed.methods or parsed.evaluations or parsed.launcher:
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
        wanted = [with_floor(request) for request in wanted]
    if parsed.forecast:
        from harness.measure import forecast

        print(forecast.table(_planned(wanted), parsed.memory_limit))
        return 0
    output = wanted[0].output
    with contextlib.nullcontext(launcher) if launcher else launch.launcher(wanted[0], output) as launcher:
        jobs = _planned(wanted)
        for line in outlook(wanted, jobs, output):
            say(line)
        if FLOOR not in (parsed.methods or ()) and any(FLOOR in request.methods for request in wanted):
            say(f"{FLOOR} runs as well, for comparison (--no-random leaves it out).")
        force = any(request.force for request in wanted)
        return carry_out(
            jobs, output, launcher, force=force, experiment=parsed.experiment, queue=wanted[0].launcher in QUEUES
        )


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
    jobs: Sequence[Job],
    output: Path,
    launcher: Launcher,
    *,
    force: bool,
    experiment: str | None = None,
    queue: bool = False,
    show: Callable[[Sequence[Distilled]], str] | None = None,
) -> int:
    """Do what is left of ``jobs``, or with ``force`` all; then the tables, and those and the figures of ``experiment``.

    ``show``: the text that is printed of the results, by default their table.

    Several runs may share ``output``: a cell that another does is left to it, and awaited. With ``queue`` the launcher
    is given such a cell all the same: it knows which are its own from an earlier command. Returns the exit status.
    Raises UserError, and runs nothing, while another run with ``force`` works there, and where a record there is of a
    newer version of the suite.
    """
    command = jobs[0].command if jobs else PROGRAM
    with contextlib.ExitStack() as stack:
        if force:  # two of them would do everything twice
            stack.enter_context(only_runner(output, command))
        record.refuse_newer(output)
        run = _Run(jobs, output, command, force=force, queue=queue)
        run.through(launcher)
        written = run.done == [] or _report(run.distilled(), output, experiment, command, show)
    if run.stopped is not None:
        on = " without --force goes on with those that have no result" if force else " goes on with the next"
        print(file=sys.stderr)
        cells = sum(1 + len(job.beside) for job in jobs)
        if run.halfway:
            on = f" goes on with {run.halfway}"
        say(f"{run.stopped}; {len(run.done)} of {cells} cells are done and kept in {output}; the same command{on}")
        return run.status
    return 0 if written and not run.failed else 1


def _report(
    distilled: Sequence[Distilled],
    output: Path,
    experiment: str | None,
    command: str,
    show: Callable[[Sequence[Distilled]], str] | None,
) -> bool:
    """Print what this run has to ``show``, and write the tables of everything in ``output``.

    Returns whether that went well.
    """
    from harness import report
    from harness.reports.paper_tables import has_table

    print((show or report.show)(distilled))
    # The files tell everything that lies there: a smaller run takes no measured row away. What is read under the lease
    # is at least what any earlier holder has read, so the last files tell everything.
    try:
        with awaited(output / FOLDER / TABLES, command):
            kept, damaged = record.read_all(output)
            for line in damaged:
                say(line)
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


@dataclass
class _Begun:
    """A job that the launcher has."""

    number: int
    job: Job
    """As it was asked for, in its own folder."""
    place: str
    """Its number and name."""
    since: float
    answers: dict[Path, os.stat_result]
    """Answers that were there before it began."""


class _Run:
    """The jobs of a run on their way through a launcher, which may take them in any order."""

    def __init__(self, jobs: Sequence[Job], output: Path, command: str, *, force: bool, queue: bool) -> None:
        self.jobs, self.output, self.command, self.force, self.queue = jobs, output, command, force, queue
        self.done: list[Job] = []
        self.failed = False
        """Whether anything has no result, or one that did not come from this run although it was to."""
        self.stopped: str | None = None
        """Why the run ended before its jobs did."""
        self.status = 1
        """The exit status, where it ended so."""
        self.halfway = ""
        """The cells that were under way then and will be continued, in words."""
        self._replaced: dict[str, tuple[Job, Lease]] = {}
        """Folder where a job runs that has a result already → the job, and our lease on that folder."""
        self._begun: dict[tuple[str, ...], _Begun] = {}
        """Key of a job → the job that the launcher has under it."""
        self._said = ""
        """Place of the job that the last line was about."""
        self._watch = Watch()
        self._elsewhere: dict[int, tuple[Job, Record | None]] = {}
        """Number of a job that is left to another run for now → the job, and the record that was there."""

    def through(self, launcher: Launcher) -> None:
        try:
            _finish_exchange(self.output, self.command)
            # In whatever order a launcher takes jobs, all sets are there before a question about several is asked.
            for late in (False, True):
                left = [(number, job) for number, job in enumerate(self.jobs, 1) if bool(job.before) == late]
                while left:
                    with contextlib.closing(launcher(self._left(left))) as ended:
                        for job in ended:
                            self._finish(job)
                    for key in list(self._begun):  # they were leased by others when their turn came
                        self._leave(self._begun.pop(key))
                    left = [(number, job) for number, (job, _) in self._elsewhere.items()]
                    self._await(left)
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
        finally:
            for _, lease in self._replaced.values():
                lease.release()
        _finish_exchange(self.output, self.command)

    def _halfway(self) -> str:
        """The cells that had been begun and are not those of ``--force``, and the steps from which they go on."""
        words = []
        for (*_, folder), begun in self._begun.items():
            if folder not in self._replaced:
                steps = steps_in(Path(folder) / CHECKPOINT)
                words.append(f"{begun.place}{f', after its step {max(steps)}' if steps else ''}")
        return "; ".join([*words[:MOST_NAMED], *([f"{len(words) - MOST_NAMED} more"] if words[MOST_NAMED:] else [])])

    def distilled(self) -> list[Distilled]:
        """The results of the jobs that are done, as far as their files can be read."""
        return [each for path in dict.fromkeys(job.path for job in self.done) for each in record.read_all(path)[0]]

    def _left(self, numbered: Iterable[tuple[int, Job]]) -> Iterator[Job]:
        """The jobs with anything left to do, one line before each; without those that other runs do at present."""
        for number, job in numbered:
            place = f"[{number}/{len(self.jobs)}] {job}"
            # Before the record is read: who lets go of a cell has written its record by then.
            holder = None if self.queue else self._holder(job)
            before = existing(job)
            if job.before:
                sets = (*job.before, job)
                if missing := next((each for each in sets if last_set(each, existing(each)) is None), None):
                    asked = ", ".join(question.evaluation for question in job.questions)
                    say(f"{place}: {asked} is not asked, as there is no set of {missing.distillation}")
                    self._elsewhere.pop(number, None)
                    self.failed = True
                    continue
                job = dataclasses.replace(job, force=self.force)
                reasons = []
            else:
                reasons = self._reasons(job)
            distils = before is None or any(reason is not None for reason in reasons)
            asked_for = [] if before is None or distils else list(asks(job, before))
            if before is not None and not distils and not asked_for:
                when = "meanwhile" if number in self._elsewhere else "before"
                say(f"{place}: {before['status']}, done {when} on {_where(before)} ({job.path.name})")
                self._elsewhere.pop(number, None)
                self.done += [job, *job.beside]
                continue
            if self._failed_elsewhere(number, before, place):
                self.done += [job, *job.beside]
                continue
            begun = _Begun(number, job, place, time.monotonic(), {})
            if holder is not None:
                self._leave(begun, holder)
                continue
            check_writable(self.output, "the folder")
            if distils:
                try:
                    first, *others = map(self._apart, (job, *job.beside))
                except Held as other:
                    self._leave(begun, str(other))
                    continue
                if self._reasons(job) != reasons:  # another run has put its result there, a moment ago
                    self._leave(begun)
                    continue
                job = dataclasses.replace(first, beside=tuple(others))
            self._elsewhere.pop(number, None)
            if asked_for:
                assert before is not None
                names = ", ".join(dict.fromkeys(ask.question.evaluation for ask in asked_for))
                say(f"{place}: distilled before on {_where(before)}, asked for {names}")
            else:
                say(place)
                for reason in filter(None, reasons):
                    say(f"  {reason}: it is distilled again")
            job = dataclasses.replace(job, place=f"[{number}/{len(self.jobs)}]")
            paths = (job.path / EVALUATIONS).glob("*.json")
            begun.answers = {path: path.stat() for path in paths if path.is_file()}
            self._begun[job.key] = begun
            self._said = place
            yield job

    def _reasons(self, job: Job) -> list[str | None]:
        return [reason_to_distil(each, existing(each), force=self.force) for each in (job, *job.beside)]

    def _holder(self, job: Job) -> str | None:
        """Who works on ``job`` elsewhere, in words; None: nobody."""
        holders = (self._watch.holder(path_of(each.path)) for each in (job, *job.beside))
        return next(filter(None, holders), None)

    def _leave(self, begun: _Begun, holder: str | None = None) -> None:
        """Leave a job to the run that does it at present, and come back to it."""
        for each in (begun.job, *begun.job.beside):
            _, lease = self._replaced.pop(str(self._folder_apart(each)), (None, None))
            if lease is not None:
                lease.release()
        if begun.number not in self._elsewhere:
            say(f"{begun.place}: left for now to {holder or 'another run'}")
            self._said = begun.place
            self._elsewhere[begun.number] = begun.job, existing(begun.job)

    def _failed_elsewhere(self, number: int, after: Record | None, place: str) -> bool:
        """Whether another run, to which the job was left, has written an error: it would be the same here."""
        if number not in self._elsewhere or after is None or after["status"] in FINAL:
            return False
        if after == self._elsewhere[number][1]:
            return False
        say(f"{place}: {after['status']} in another run: {after['message']}")
        del self._elsewhere[number]
        self.failed = True
        return True

    def _await(self, left: Sequence[tuple[int, Job]]) -> None:
        """Wait until another run has ended one of the jobs that are ``left`` to it, or is gone."""

        def end(number: int) -> None:
            raise Stopped(number)

        with stopping.handling(end, lambda: None):
            while left:
                time.sleep(POLL_SECONDS)
                if any(self._holder(job) is None and not self._exchanging(job) for _, job in left):
                    return

    def _exchanging(self, job: Job) -> bool:
        """Whether another run makes the result of ``job`` anew, to put it into the place of an earlier one."""
        folders = (self._folder_apart(each) for each in (job, *job.beside))
        return any(self._watch.holder(exchange_of(folder)) is not None for folder in folders)

    def _folder_apart(self, job: Job) -> Path:
        return self.output / AGAIN / job.path.name

    def _apart(self, job: Job) -> Job:
        """``job`` in a folder of its own, if it has a result already: that is out of its way.

        The answers go with it: those about the very same set need not be given again. Raises Held where another run
        does the same.
        """
        before = existing(job)
        if before is None or before["status"] not in FINAL:
            return job
        if before["status"] == "timeout" and not self.force and steps_in(job.path / CHECKPOINT):
            return job  # it goes on
        folder = self._folder_apart(job)
        self._replaced[str(folder)] = job, take(exchange_of(folder), self.command, wait=False, watch=self._watch)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(job.path / EVALUATIONS, folder / EVALUATIONS)
        return dataclasses.replace(job, folder=str(folder), force=self.force)

    def _finish(self, job: Job) -> None:
        """Say what became of ``job``, and put it where an earlier result was."""
        begun = self._begun.pop(job.key)
        for each in (job, *job.beside):
            after = existing(each)
            if after is None:
                raise UserError(f"{each.path} has no record, or one that cannot be read")
            name = f"{each.distillation.method}: " if job.beside else ""
            seconds = time.monotonic() - begun.since
            alone = self._said == begun.place and not self._begun
            say(f"{' ' if alone else begun.place + ':'} {name}{_outcome(each, after)} ({seconds:.0f} s)")
            self._said = begun.place
            unanswered = any(asks(dataclasses.replace(each, force=False), after))
            if after["status"] not in FINAL or unanswered or (each.force and _any_kept(each, after, begun.answers)):
                self.failed = True
            if each.folder in self._replaced:
                each = self._exchange(*self._replaced.pop(each.folder), each, after)
            self.done.append(each)

    def _exchange(self, job: Job, lease: Lease, again: Job, after: Record) -> Job:
        """Put the result of ``again`` into the place of that of ``job``, unless the earlier one is worth more."""
        with lease, awaited(path_of(job.path), self.command):  # no cell works in the folder of ``job`` then
            try:
                lease.check()
            except Lost:
                raise UserError(f"another run took {again.path} over while this one was suspended") from None
            before = existing(job)
            if before is not None and _stays(before, after):
                say("  the earlier result is kept")
                self.failed = True
                with contextlib.suppress(OSError):
                    os.replace(again.path / record.LOG, job.path / record.LOG)
            else:
                for answer in (job.path / EVALUATIONS).glob("*.json"):  # another run may have asked more meanwhile
                    target = again.path / EVALUATIONS / answer.name
                    if not target.exists():
                        target.parent.mkdir(exist_ok=True)
                        shutil.copy2(answer, target)
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


def _finish_exchange(output: Path, command: str) -> None:
    """End what was begun before a kill or an interrupt: a result that was put aside has one that takes its place."""
    names = {aside.name.removeprefix(".").removesuffix(".earlier") for aside in output.glob(".*.earlier")}
    for name in sorted(names | {again.name for again in (output / AGAIN).glob("*")}):
        folder, again = output / name, output / AGAIN / name
        with contextlib.suppress(Held), take(exchange_of(again), command, wait=False):
            aside = _aside(folder)
            if aside.exists() and not folder.exists():
                os.replace(again if again.exists() else aside, folder)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(again, ignore_errors=True)
    with contextlib.suppress(OSError):  # nothing is there, or another run works in it
        (output / AGAIN).rmdir()


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
    item = answer["config"].get(known.each) if known.each else ""
    about = ", ".join(map(str, item)) if isinstance(item, list) else f"{known.each} {item}" if known.each else ""
    if answer["status"] != "ok":
        about = " ".join(filter(None, (answer["evaluation"], about)))
        return f"{about}: {answer['status']}: {answer['message']}"
    quantities, parts = known.quantities, list[str]()
    for name, values in answer["values"].items():
        if (quantity := quantities.get(name)) is None:  # of another version
            continue
        title = quantity.title.removesuffix(" (%)")
        scale, form, unit = (100, ".2f", " %") if quantity.percent else (1, ".3g", "")
        mean, std = record.summarise(values if quantity.against is None else values[-1:])
        if mean is not None:
            parts.append(f"{title} {scale * mean:{form}}{'' if std is None else f' ± {scale * std:{form}}'}{unit}")
    return f"{about}{': ' if about else ''}{', '.join(parts)}, n = {count(answer)}"


def say(line: str) -> None:
    """Print ``line`` for the user, on standard error."""
    progress.say(line)


if __name__ == "__main__":
    end(main())
