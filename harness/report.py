"""Folders of distillations → tables, on screen and as Markdown, LaTeX and CSV; and a page, ``report.html``.

python -m harness.report results/local --format markdown,latex,html
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from benchmarks.errors import UserError, choose, printable
from harness.command_line import Parser, end, exit_status, file_path
from harness.plan.planning import check_writable
from harness.plan.request import DEFAULT_OUTPUT
from harness.records.files import write_texts
from harness.records.record import Distilled, read_all
from harness.reports.groups import grouped
from harness.reports.render import TEX_HEAD, csv, latex, literal, markdown, screen
from harness.reports.tables import rows, tables

PROGRAM = "python -m harness.report"
FORMATS = {"markdown": "table.md", "latex": "table.tex", "csv": "table.csv", "html": "report.html"}
"""Format → its file."""
USUAL = ("markdown", "latex", "csv")
"""Formats that are written where none are named."""


def write(
    distilled: Sequence[Distilled], folder: Path, formats: Sequence[str] = USUAL, damaged: Sequence[str] = ()
) -> None:
    """Write the files of ``formats`` into ``folder``. ``damaged``: a line for each file that could not be read.

    Raises UserError where there are no records, and where the files cannot be written.
    """
    if not distilled:
        raise UserError(f"no records in {folder}")
    groups = grouped(distilled)
    made = tables(groups)
    contents = {
        "markdown": lambda: "\n\n".join(markdown(table) for table in made) + "\n",
        "latex": lambda: TEX_HEAD + "\n".join(latex(table) for table in made),
        "csv": lambda: csv(rows(groups)),
        "html": lambda: _html(distilled, damaged),
    }
    write_texts({FORMATS[name]: contents[name]() for name in formats}, folder, "the tables")


def _html(distilled: Sequence[Distilled], damaged: Sequence[str]) -> str:
    from harness.reports.html import page  # slow, and seldom asked for

    return page(distilled, damaged)


def show(distilled: Sequence[Distilled]) -> str:
    """The tables of ``distilled`` for a terminal."""
    return "\n\n".join(screen(table) for table in tables(grouped(distilled)))


def page(folders: Sequence[Path], place: Path) -> str:
    """A Markdown page in the folder ``place``: its notes, then the notes, tables and figures of each of ``folders``.

    What no record knows stands in a file ``notes.md`` of a folder, and of ``place``.
    """
    parts: list[Path | str] = [place / "notes.md"]
    for folder in folders:
        pictures = [
            (path.stem, quote(os.fsencode(os.path.relpath(path, place)))) for path in sorted(folder.glob("*.png"))
        ]
        parts += [f"## {literal(folder.resolve().name)}", folder / "notes.md", folder / "table.md"]
        parts += [*(f"![{literal(name)}]({link})" for name, link in pictures), folder / "scaling.md"]
    there = (part for part in parts if isinstance(part, str) or part.is_file())
    return "\n\n".join(part if isinstance(part, str) else part.read_text("utf-8").strip() for part in there) + "\n"


def folders_parser(program: str, description: str) -> Parser:
    """The arguments of a command that reads folders of distillations."""
    parser = Parser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument(
        "folders", type=file_path, nargs="*", metavar="FOLDER", help="where distillations are, however deep"
    )
    parser.add_argument(
        "--output", type=file_path, metavar="FOLDER", help="where to write; by default the first FOLDER"
    )
    return parser


def formats_of(text: str) -> tuple[str, ...]:
    """Formats on the command line, each once."""
    try:
        return tuple(dict.fromkeys(choose("format", name.strip(), FORMATS) for name in text.split(",")))
    except UserError as error:  # argparse has words of its own for a ValueError
        raise argparse.ArgumentTypeError(str(error)) from None


def read_folders(parser: Parser, options: argparse.Namespace) -> tuple[Path, list[Distilled], list[str]]:
    """The folder to write into, the distillations in those of ``options``, and a line for each damaged file.

    The lines stand on standard error as well. Raises UserError for no folder, and for one that is not there.
    """
    if not options.folders:
        raise UserError(f"no folder is given; for instance: {parser.prog} {DEFAULT_OUTPUT}")
    output = options.output or options.folders[0]
    if options.output is not None:
        check_writable(options.output, "--output")
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is a file, not a folder" if folder.exists() else f"no such folder: {folder}")
    distilled: dict[Path, Distilled] = {}
    lines: dict[str, None] = {}
    for folder in options.folders:
        inside, damaged = read_all(folder)
        distilled |= {each.folder.resolve(): each for each in inside}  # folders may lie in each other
        lines |= dict.fromkeys(damaged)
    for line in lines:
        print(printable(line), file=sys.stderr)
    return output, list(distilled.values()), list(lines)


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """``python -m harness.report FOLDER …``: make the tables again from the records. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program))


def _main(arguments: Sequence[str], program: str) -> int:
    parser = folders_parser(program, "Make the tables of folders again.")
    parser.add_argument(
        "--format",
        type=formats_of,
        default=USUAL,
        metavar="A,B",
        help=f"what to write: {', '.join(FORMATS)}; by default {','.join(USUAL)}",
    )
    parser.add_argument(
        "--page",
        type=file_path,
        metavar="FILE",
        help="write a Markdown page as well, with the tables, figures and notes.md of every FOLDER",
    )
    options = parser.parse(arguments)
    if options.page is not None and "markdown" not in options.format:
        raise UserError("--page shows the tables in Markdown: name markdown in --format")
    output, distilled, damaged = read_folders(parser, options)
    if options.page is None:
        write(distilled, output, options.format, damaged)
        print(show(distilled))
        if "html" in options.format:
            print(f"\nThe page: {printable(str(output / FORMATS['html']))}")
    else:
        for folder in options.folders:
            inside = [each for each in distilled if each.folder.resolve().is_relative_to(folder.resolve())]
            write(inside, folder, options.format)
        write_texts({options.page.name: page(options.folders, options.page.parent)}, options.page.parent, "the page")
    return 1 if damaged else 0


if __name__ == "__main__":
    end(main())
