"""Folders of distillations → tables, on screen and as Markdown, LaTeX and CSV; and a page, ``report.html``.

python -m harness.report results/local --format markdown,latex,html
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.errors import UserError, choose, printable
from harness.command_line import Parser, command, end, file_path, new_file
from harness.plan.planning import check_writable
from harness.plan.request import DEFAULT_OUTPUT
from harness.records.files import write_texts
from harness.records.record import Distilled, read_all
from harness.reports import paper_tables
from harness.reports.accuracies import AccuracyTable, accuracy_table
from harness.reports.comparisons import comparison_rows, comparison_tables
from harness.reports.groups import Group, by_table, grouped
from harness.reports.render import PAPER_HEAD, TEX_HEAD, Table, csv, latex, literal, markdown, screen
from harness.reports.selection import Selection
from harness.reports.tables import rows, tables
from harness.reports.verdicts import Verdict, claims_lines, claims_markdown, claims_rows, claims_table, verdicts

PROGRAM = "python -m harness.report"
USUAL = ("markdown", "latex", "csv")
"""Formats that are written where none are named."""
PAGE_FORMAT = "html"
FORMATS = (*USUAL, PAGE_FORMAT)
PAGE = "report.html"
CLAIMS = "claims"
ACCURACIES = "accuracies"


def write(
    distilled: Sequence[Distilled],
    folder: Path,
    *,
    formats: Sequence[str] = USUAL,
    damaged: Sequence[str] = (),
    intervals: bool = False,
    comparisons: bool = False,
    claims: bool = False,
    accuracies: bool = False,
    selection: Selection | None = None,
) -> str:
    """Write ``table.md``, ``table.tex``, ``table.csv`` and ``report.html``, those of ``formats``, into ``folder``.
    Returns the tables for a terminal.

    ``damaged``: a line for each file that could not be read; the page tells them. ``intervals``: with a column of them.
    ``comparisons``, ``claims``, ``accuracies``: with tables of these, in files of their names. ``selection``: what is
    shown of the tables and the accuracies; ``table.csv`` and the page have everything.

    Raises UserError where there are no records, where the files cannot be written, and for a selection of what is not
    there.
    """
    if not distilled:
        raise UserError(f"no records in {folder}")
    groups = grouped(distilled)
    whole, selection = tables(groups, intervals=intervals), selection or Selection()
    made = {"table": (selection.of_tables(whole), rows(groups))}
    if comparisons:
        made["comparisons"] = comparison_tables(groups), comparison_rows(groups)
    shown = [screen(table) for own, _ in made.values() for table in own]
    contents = dict[str, str]()
    if claims:
        judged = verdicts(groups)
        shown.append(claims_lines(judged))
        contents |= _claims(judged, formats)
    if accuracies:
        papers = _accuracies(groups, list(map(selection.places, whole)))
        shown += [screen(paper.table) for paper in papers]
        texts = {
            "markdown": (".md", "\n\n".join(markdown(paper.table) for paper in papers) + "\n"),
            "latex": (".tex", PAPER_HEAD + "\n".join(paper.latex() for paper in papers)),
        }
        contents |= {f"{ACCURACIES}{ending}": text for kind, (ending, text) in texts.items() if kind in formats}
    for name, (own, lines) in made.items():
        contents |= _files(name, own, lines, formats)
    if PAGE_FORMAT in formats:
        from harness.reports import html  # slow, and seldom asked for

        contents[PAGE] = html.page(distilled, damaged, intervals=intervals, comparisons=comparisons)
        shown.append(printable(f"The page: {folder / PAGE}"))
    write_texts(contents, folder, "the tables")
    return "\n\n".join(shown)


def write_experiment(
    experiment: str,
    distilled: Sequence[Distilled],
    folder: Path,
    *,
    formats: Sequence[str] = USUAL,
    selection: Selection | None = None,
) -> str:
    """Write the tables of ``experiment`` into ``folder``, as ``table2.md``, ``.tex`` and ``.csv``. Returns their text.

    Raises UserError where nothing of it is measured, and as `write` does.
    """
    sheets = paper_tables.sheets(experiment, distilled)
    if not sheets:
        raise UserError(f"nothing of {experiment} is measured there: python -m harness.run --experiment {experiment}")
    made = (selection or Selection()).of_tables([sheet.table() for sheet in sheets])
    lines = [row for sheet in sheets for row in sheet.csv_rows()]
    write_texts(_files(experiment, made, lines, formats), folder, "the tables")
    return "\n\n".join(map(screen, made))


def _accuracies(groups: Sequence[Group], places: Sequence[Sequence[int]]) -> list[AccuracyTable]:
    """The accuracies of each table; ``places``: the rows that are shown of each. Raises UserError for none."""
    parts = zip(by_table(groups).values(), places, strict=True)
    papers = [made for part, own in parts if (made := accuracy_table(part, own))]
    if not papers:
        raise UserError("--accuracies has nothing to show: no row that is shown has an accuracy")
    return papers


def _claims(judged: Sequence[Verdict], formats: Sequence[str]) -> dict[str, str]:
    """The files of the claims, as `_files`."""
    files = _files(CLAIMS, [claims_table(judged)], claims_rows(judged), formats)
    return files | ({f"{CLAIMS}.md": claims_markdown(judged)} if "markdown" in formats else {})


def _files(
    name: str, made: Sequence[Table], lines: Sequence[Mapping[str, Any]], formats: Sequence[str]
) -> dict[str, str]:
    """File → its text, in each of ``formats`` that is text: the tables ``made``, and ``lines`` without rounding."""
    texts: dict[str, tuple[str, Callable[[], str]]] = {
        "markdown": (".md", lambda: "\n\n".join(map(markdown, made)) + "\n"),
        "latex": (".tex", lambda: TEX_HEAD + "\n".join(map(latex, made))),
        "csv": (".csv", lambda: csv(lines)),
    }
    return {f"{name}{ending}": text() for kind, (ending, text) in texts.items() if kind in formats}


def show(distilled: Sequence[Distilled]) -> str:
    """The tables of ``distilled`` for a terminal."""
    return "\n\n".join(screen(table) for table in tables(grouped(distilled)))


def page(folders: Sequence[Path], place: Path) -> str:
    """A Markdown page in the folder ``place``: its notes and claims, then the notes, tables and figures of ``folders``.

    What no record knows stands in a file ``notes.md`` of a folder, and of ``place``.

    Raises UserError for a file that is no text in UTF-8.
    """

    def read(file: Path) -> str:
        try:
            return file.read_text("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no text in UTF-8 ({error.reason}, byte {error.start})") from error

    parts: list[Path | str] = [place / "notes.md"]
    if (place / f"{CLAIMS}.md").is_file():
        parts += ["## The claims of the paper", place / f"{CLAIMS}.md"]
    for folder in folders:
        pictures = [
            (path.stem, quote(os.fsencode(os.path.relpath(path, place)))) for path in sorted(folder.glob("*.png"))
        ]
        parts += [f"## {literal(folder.resolve().name)}", folder / "notes.md", folder / "table.md"]
        parts += [*(f"![{literal(name)}]({link})" for name, link in pictures)]
        parts += [folder / f"{name}.md" for name in ("scaling", "comparisons")]
    there = (part for part in parts if isinstance(part, str) or part.is_file())
    return "\n\n".join(part if isinstance(part, str) else read(part) for part in there) + "\n"


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

    The lines stand on standard error as well. Raises UserError for no folder, for one that is not there,
    and where there are no records.
    """
    if not options.folders:
        raise UserError(f"no folder is given; for instance: {parser.prog} {DEFAULT_OUTPUT}")
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
    if not distilled:
        raise UserError(f"no records in {', '.join(map(str, options.folders))}")
    if options.output is not None:
        check_writable(options.output, "--output")
    return options.output or options.folders[0], list(distilled.values()), list(lines)


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Make the tables of folders again from their records."""
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
        type=new_file,
        metavar="FILE",
        help="write a Markdown page as well, with the tables, figures and notes.md of every FOLDER",
    )
    for name, meaning in (
        ("intervals", "with a 95 %% interval of each mean accuracy"),
        ("comparisons", "with a table of which method is better than which: comparisons.md, .tex, .csv"),
        ("accuracies", "with a table of accuracies for a paper, methods by data sets and ipc: accuracies.md, .tex"),
        ("claims", "with the claims of FRePo's paper and what the records say of them: claims.md, .tex, .csv"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    parser.add_argument(
        "--experiment", metavar="NAME", help="the table of an experiment, as table2, beside the numbers of the paper"
    )
    for name, form, meaning in (
        ("columns", "A,B", "columns to show, in this order, by title or how it begins: method,ipc,accuracy"),
        ("rows", "A=X,Y;B=Z", "rows to show: 'method=frepo,mtt; ipc=1'; * stands for any letters"),
        ("sort", "A", "sort rows by a column: ipc, or accuracy:down for the largest first"),
    ):
        parser.add_argument(f"--{name}", metavar=form, help=meaning)
    options = parser.parse(arguments)
    selection = Selection.of(options.columns, options.rows, options.sort)
    if options.page is not None and (selection != Selection() or options.accuracies):
        raise UserError("--page shows whole tables: leave out --columns, --rows, --sort and --accuracies")
    if options.page is not None and "markdown" not in options.format:
        raise UserError("--page shows the tables in Markdown: name markdown in --format")
    if options.page is not None and options.output is not None:
        raise UserError("--page writes the tables of every FOLDER into it: leave out --output")
    if options.experiment is not None:
        for name in ("page", "intervals", "comparisons", "claims", "accuracies"):
            if getattr(options, name):
                raise UserError(f"--{name} means nothing for --experiment: leave it out")
        if PAGE_FORMAT in options.format:
            raise UserError(f"--experiment writes tables alone: leave {PAGE_FORMAT} out of --format")
    output, distilled, damaged = read_folders(parser, options)
    wanted = {name: getattr(options, name) for name in ("intervals", "comparisons", "claims", "accuracies")}
    if options.experiment is not None:
        print(write_experiment(options.experiment, distilled, output, formats=options.format, selection=selection))
    elif options.page is None:
        print(write(distilled, output, formats=options.format, damaged=damaged, selection=selection, **wanted))
    else:
        for folder in options.folders:
            inside = [each for each in distilled if each.folder.resolve().is_relative_to(folder.resolve())]
            write(inside, folder, formats=options.format, **(wanted | {CLAIMS: False}))
        if options.claims:  # they rest on the records of all folders together
            write_texts(_claims(verdicts(grouped(distilled)), options.format), options.page.parent, "the claims")
        write_texts({options.page.name: page(options.folders, options.page.parent)}, options.page.parent, "the page")
    return 1 if damaged else 0


if __name__ == "__main__":
    end(main())
