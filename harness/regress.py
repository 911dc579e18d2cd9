"""Two folders of distillations → what got worse, what got better, what is missing.

    python -m harness.regress BASELINE NEW

Exit status: 0 everything that BASELINE measured was compared and nothing is worse; 1 something is worse or missing; 2
there is nothing to compare; 3 nothing is worse, but something that BASELINE measured was not compared, and the output
says which. With ``--strict`` that is missing, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from benchmarks.errors import UserError, choose
from harness.command_line import Parser, command, end, file_path, finite, new_file
from harness.records.files import write_texts
from harness.records.record import RECORD, Distilled, read, read_all
from harness.reports.regression_formats import EXPORTS, FORMATS
from harness.reports.regressions import Bounds, Comparison, compare, counters_alone, flag, markdown

PROGRAM = "python -m harness.regress"


def read_side(path: Path) -> list[Distilled]:
    """The distillations under a folder, or that of a ``record.json``.

    Raises UserError where there is none, and where a file is damaged.
    """
    if path.is_file() and path.name == RECORD:
        return [read(path.parent)]
    if not path.is_dir():
        raise UserError(f"{path} is no {RECORD}" if path.exists() else f"no such folder or record: {path}")
    distilled, damaged = read_all(path)
    if damaged:  # what cannot be read cannot be seen to be worse
        raise UserError(damaged[0])
    if not distilled:
        raise UserError(f"no records in {path}")
    return distilled


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Print the comparison of two sets of records."""
    parser = Parser(
        prog=program,
        description="Compare two sets of records. Exit status 0: all that BASELINE measured was compared and nothing "
        "is worse; 1: something is worse or missing; 2: nothing could be compared; 3: nothing is worse, but something "
        "was not compared.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "baseline", type=file_path, metavar="BASELINE", help="folder of distillations, or a record.json"
    )
    parser.add_argument("new", type=file_path, metavar="NEW", help="the same, measured later")
    parser.add_argument(
        "--format",
        default="markdown",
        metavar="NAME",
        help=f"{', '.join(FORMATS)}. json: with numbers; junit: a test case for each number; github: annotations, and "
        "the Markdown as summary of the job and in --output",
    )
    parser.add_argument("--output", type=new_file, metavar="FILE", help="write it there as well")
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("TRACKER", "FILE"),
        help=f"write the numbers of NEW for {' or '.join(EXPORTS)}; the latter takes two files, NAME-smaller and "
        "NAME-bigger for a FILE called NAME",
    )
    parser.add_argument(
        "--strict", action="store_true", help="what BASELINE measured and was not compared is missing: status 1, not 3"
    )
    parser.add_argument(
        "--counters-only",
        action="store_true",
        help="compare statuses and counters alone, which are the same on every machine, whatever the device",
    )
    for each in fields(Bounds):
        parser.add_argument(
            flag(each.name), type=finite, default=each.default, metavar="NUMBER", help=each.metadata["help"]
        )
    options = parser.parse(arguments)
    bounds = Bounds(**{each.name: getattr(options, each.name) for each in fields(Bounds)})
    render = FORMATS[choose("format", options.format, FORMATS)]
    if options.export:
        choose("tracker", options.export[0], EXPORTS)
    sides = [read_side(path) for path in (options.baseline, options.new)]
    if options.counters_only:
        sides = [list(map(counters_alone, side)) for side in sides]
    if options.export:
        _export(options.export, compare(sides[1], sides[1], bounds))
    comparison = compare(sides[0], sides[1], bounds)
    if options.counters_only:  # what was left out on purpose is not "not measured"
        told = tuple(each for each in comparison.findings if each.verdict != "not compared" or each.lost)
        comparison = dataclasses.replace(comparison, findings=told)
    if options.strict:
        comparison = comparison.strict()
    text = render(comparison)
    print(text, end="")
    if options.format == "github":
        text = markdown(comparison)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(summary, "a", encoding="utf-8") as appended:
                appended.write(text)
    if options.output is not None:
        write_texts({options.output.name: text}, options.output.parent, "the comparison")
    return comparison.status


def _export(asked: Sequence[str], comparison: Comparison) -> None:
    """Write the numbers of ``comparison``, of NEW with itself. ``asked``: the tracker, and the file to write, or after
    which several are named."""
    tracker, file = asked
    try:
        path = new_file(file)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--export: {error}") from None
    texts = EXPORTS[tracker](comparison)
    write_texts({f"{path.stem}{ending}{path.suffix}": text for ending, text in texts.items()}, path.parent, "numbers")


if __name__ == "__main__":
    end(main())
