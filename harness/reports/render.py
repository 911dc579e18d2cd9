"""Tables as text: for a screen, as Markdown, LaTeX and CSV; and how numbers look in all of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tabulate

from benchmarks.errors import printable
from harness.reports.groups import NONE


@dataclass(frozen=True)
class Table:
    """Cells of text, made printable; ``bold`` holds the (row, column) of the best, ``underlined`` of the second."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]]
    notes: tuple[str, ...]
    underlined: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", printable(self.caption))
        object.__setattr__(self, "columns", tuple(map(printable, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))
        object.__setattr__(self, "notes", tuple(printable(note) for note in self.notes if note))


# --- numbers ----------------------------------------------------------------------------------------------------------


def percent(mean: float | None, std: float | None) -> str:
    """``93.0 ± 0.4`` for fractions."""
    return NONE if mean is None else f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def number(values: Sequence[float], summary: Callable[[Sequence[float]], float], form: str) -> str:
    return format(summary(values), form) if values else NONE


def short(value: float | None, unit: float = 1.0) -> str:
    """Three digits, or all before the point."""
    return NONE if value is None else f"{value / unit:{'.3g' if value < 999.5 * unit else ',.0f'}}"


def times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def mebibytes(size: float | None) -> str:
    """Two digits, or all before the point."""
    return NONE if size is None else f"{size / 2**20:{'.2g' if size < 9.95 * 2**20 else ',.0f'}}"


def span(values: Iterable[float]) -> str:
    """The smallest and the largest; empty where there is none."""
    ordered = sorted(set(values))
    return "–".join(f"{value:.15g}" for value in dict.fromkeys((ordered[0], ordered[-1]))) if ordered else ""


def listed(values: Iterable[Any]) -> str:
    """The different values, nulls apart: numbers in their order, then texts."""
    texts = {str(value): value for value in values if value is not None}
    numbers = [text for text, value in texts.items() if isinstance(value, (int, float))]
    return ", ".join([*sorted(numbers, key=lambda text: texts[text]), *sorted(texts.keys() - set(numbers))])


def leading(text: str) -> float | None:
    """The number with which ``text`` begins, as ``93.5`` of ``93.5 ± 1.4``; None where there is none."""
    found = re.match(r"[-−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?(?![\w.])", text)
    return float(found[0].replace(",", "").replace("−", "-")) if found else None


def letter(number: int) -> str:
    """a, b, …, z, aa, …"""
    return chr(ord("a") + number) if number < 26 else letter(number // 26 - 1) + letter(number % 26)


# --- renderings -------------------------------------------------------------------------------------------------------

tabulate.MIN_PADDING = 0
_LEFT = {"method", "recipe", "setting", "data set", "network", "variant", "trained on"}
_COMMON = {"recipe", "data set", "ipc", "network", "width", "parameters", "steps"}
"""Columns that a terminal has no room for where all rows have the same there."""
TELLING = _LEFT | _COMMON
"""Columns that tell rows apart."""
SETTING = 30
"""Characters of a line of a setting on a terminal."""


def markdown(table: Table) -> str:
    """The caption, the table, and the notes, a paragraph each."""
    rows = [[literal(cell) for cell in row] for row in table.rows]
    grid = _grid([literal(column) for column in table.columns], _marked(rows, table, "<ins>", "</ins>"), "pipe")
    return "\n\n".join([literal(table.caption), grid, *map(literal, table.notes)])


def literal(text: str) -> str:
    """``text`` for Markdown, where it shows as it is, in a table as well."""
    return re.sub(r"([\\`*|]|<(?=[a-zA-Z/!?]))", r"\\\1", printable(text))


def csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each of ``rows``; line breaks and escape codes show as in a string of Python."""
    import pandas as pd  # slow, and --help must not wait for it

    shown = ({printable(k): printable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    return pd.DataFrame(shown).to_csv(index=False)


def screen(table: Table) -> str:
    """The same for a terminal: narrow columns, wrapped text; what all rows have in common stands above them."""
    common, narrow = [], {}
    for title, cells in zip(table.columns, zip(*_marked(table.rows, table, "_", "_"), strict=True), strict=True):
        if title in _COMMON and len(cells) > 1 and len(set(cells)) == 1:
            common.append(f"{title} {cells[0]}")
        else:
            wrapped = [textwrap.fill(cell, SETTING) for cell in cells] if title == "setting" else cells
            narrow["\n".join(_narrow(title))] = wrapped
    grid = _grid(list(narrow), list(zip(*narrow.values(), strict=True)), "simple")
    head = [table.caption, *([f"All rows: {', '.join(common)}."] if common else [])]
    texts = ["\n".join(textwrap.fill(text, 100) for text in part) for part in (head, table.notes)]
    return "\n\n".join([texts[0], grid, texts[1]]).rstrip()


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    align = ["left" if column.replace("\n", " ") in _LEFT else "right" for column in columns]
    return tabulate.tabulate(rows, headers=columns, tablefmt=form, disable_numparse=True, colalign=align)


def _marked(rows: Sequence[Sequence[str]], table: Table, begin: str, end: str) -> list[list[str]]:
    """``rows`` with stars around what is bold, and ``begin`` and ``end`` around what is underlined."""

    def marked(place: tuple[int, int], cell: str) -> str:
        return f"**{cell}**" if place in table.bold else f"{begin}{cell}{end}" if place in table.underlined else cell

    return [[marked((i, j), cell) for j, cell in enumerate(row)] for i, row in enumerate(rows)]


def _narrow(title: str) -> list[str]:
    return textwrap.wrap(title, 10, break_long_words=False)


TEX_HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
PAPER_HEAD = "% Needs \\usepackage{booktabs}.\n"
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[*"},  # what a line break would take for its argument
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "–": "--",
    "÷": r"$\div$",
}


COLUMN, LETTER, GAP = 234.0, 4.9, 3.0
"""Points (1/72.27 inch): a narrow column of a paper, a letter of its small print with room to spare, and the white on
either side of a cell.
"""
SMALL = rf"\footnotesize\setlength{{\tabcolsep}}{{{GAP:g}pt}}%"


def latex(table: Table) -> str:
    """A floating table with the rules of booktabs: small where it fits a column of a paper, else scaled."""

    def stack(column: str) -> str:
        return r"\shortstack{" + r" \\ ".join(escape(part) for part in _narrow(column)) + "}"

    def line(i: int, row: Sequence[str]) -> str:
        return " & ".join(emphasised(table, (i, j), escape(cell)) for j, cell in enumerate(row)) + r" \\"

    widths = [max(map(len, (*_narrow(t), *cells))) for t, *cells in zip(table.columns, *table.rows, strict=True)]
    fits = sum(LETTER * width + 2 * GAP for width in widths) <= COLUMN
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.caption)}}}",
            SMALL if fits else r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{''.join('l' if column in _LEFT else 'r' for column in table.columns)}}}",
            r"\toprule",
            " & ".join(stack(column) for column in table.columns) + r" \\",
            r"\midrule",
            *(line(i, row) for i, row in enumerate(table.rows)),
            r"\bottomrule",
            r"\end{tabular}" + "}" * (not fits),
            *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def emphasised(table: Table, place: tuple[int, int], text: str) -> str:
    """``text`` as LaTeX shows the cell at ``place``."""
    command = "textbf" if place in table.bold else "underline" if place in table.underlined else ""
    return rf"\{command}{{{text}}}" if command else text


def escape(text: str) -> str:
    """``text`` for LaTeX, where it shows as it is."""
    return "".join(_TEX.get(character, character) for character in text)
