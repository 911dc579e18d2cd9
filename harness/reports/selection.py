"""Parts of tables: chosen columns and rows, in another order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from benchmarks.errors import UserError, choose
from harness.reports.groups import NONE
from harness.reports.render import TELLING, Table, leading


@dataclass(frozen=True)
class Selection:
    """What is shown of tables. Columns go by their title without its unit, or by how it begins."""

    columns: tuple[str, ...] = ()
    """All, where none is named."""
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column → patterns, of which its cell must match one."""
    sort: tuple[str, bool] | None = None
    """A column, and whether the largest comes first."""

    @classmethod
    def of(cls, columns: str | None, rows: str | None, sort: str | None) -> Selection:
        """As on the command line: ``method,accuracy``, ``method=frepo,mtt; ipc=1`` and ``accuracy:down``.

        Raises UserError for text of another form.
        """
        conditions: dict[str, tuple[str, ...]] = {}
        for part in (rows or "").split(";") if rows is not None else ():
            name, equals, patterns = part.partition("=")
            if not (equals and name.strip() and patterns.strip()) or name.strip() in conditions:
                raise UserError(f"--rows takes each column once, as 'method=frepo,mtt; ipc=1', not {rows!r}")
            conditions[name.strip()] = _names(patterns)
        by, _, way = (sort or "").partition(":")
        if sort is not None and (not by.strip() or way not in ("", "down")):
            raise UserError(f"--sort takes a column, as ipc, or accuracy:down for the largest first, not {sort!r}")
        if columns is not None and not _names(columns):
            raise UserError("--columns names no column")
        return cls(_names(columns or ""), conditions, (by.strip(), way == "down") if by else None)

    def check(self, tables: Sequence[Table]) -> None:
        """Raises UserError for a column that none of ``tables`` has, and where no row is left."""
        titles = list(dict.fromkeys(title for table in tables for title in table.columns))
        for name in (*self.columns, *self.rows, *([self.sort[0]] if self.sort else [])):
            if not _places(name, titles):
                choose("column", name, titles)
        if not any(map(self.places, tables)):
            known = {
                name: ", ".join(
                    dict.fromkeys(row[j] for t in tables for j in _places(name, t.columns) for row in t.rows)
                )
                for name in self.rows
            }
            raise UserError(f"no row is left by --rows; there are {'; '.join(f'{n}={v}' for n, v in known.items())}")

    def places(self, table: Table) -> list[int]:
        """Places of the rows that are shown, in the order in which they are.

        Rows without a value come last. Raises UserError where a name in ``rows`` or ``sort`` means several columns.
        """

        def cell(row: Sequence[str], name: str) -> str:
            found = _places(name, table.columns)
            if len(found) > 1:
                raise UserError(f"{name!r} is several columns: {'; '.join(table.columns[j] for j in found)}")
            return row[found[0]] if found else NONE

        def matches(text: str, patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(text.lower(), pattern.lower()) for pattern in patterns)

        shown = [
            i
            for i, row in enumerate(table.rows)
            if all(matches(cell(row, name), patterns) for name, patterns in self.rows.items())
        ]
        if self.sort:
            name, down = self.sort
            texts = {i: cell(table.rows[i], name) for i in shown}
            numbers = {i: value for i, text in texts.items() if (value := leading(text)) is not None}
            words = [i for i in shown if i not in numbers and texts[i] != NONE]
            shown = [
                *sorted(numbers, key=lambda i: numbers[i], reverse=down),
                *sorted(words, key=lambda i: texts[i], reverse=down),
                *(i for i in shown if texts[i] == NONE),
            ]
        return shown

    def of_table(self, table: Table) -> Table:
        """What is shown of ``table``. Its caption says what is left out, and that ranks are among all rows.

        Raises UserError as `places` does.
        """

        def moved(cells: frozenset[tuple[int, int]]) -> frozenset[tuple[int, int]]:
            return frozenset((rows.index(i), columns.index(j)) for i, j in cells if i in rows and j in columns)

        rows = self.places(table)
        named = dict.fromkeys(j for name in self.columns for j in _places(name, table.columns))
        columns = list(named) if self.columns else list(range(len(table.columns)))
        left_out = [j for j in range(len(table.columns)) if j not in columns and table.columns[j] in TELLING]
        texts = {table.columns[j]: {table.rows[i][j] for i in rows} for j in left_out}
        same = [f"{title} {text}" for title, (text, *more) in texts.items() if not more and text != NONE]
        other = [title for title, found in texts.items() if len(found) > 1]
        ranked = "; bold is decided among all of them" if table.bold else ""
        told = [
            f"{len(rows)} of {len(table.rows)} rows are shown{ranked}." * (len(rows) < len(table.rows)),
            f"All rows: {', '.join(same)}." * bool(same),
            f"Not shown, though rows differ in it: {', '.join(other)}." * bool(other),
        ]
        return dataclasses.replace(
            table,
            caption=" ".join(filter(None, [table.caption, *told])),
            columns=tuple(table.columns[j] for j in columns),
            rows=tuple(tuple(table.rows[i][j] for j in columns) for i in rows),
            bold=moved(table.bold),
            underlined=moved(table.underlined),
        )

    def of_tables(self, tables: Sequence[Table]) -> list[Table]:
        """What is shown of ``tables``, those apart of which nothing is left. Raises UserError as `check` does."""
        self.check(tables)
        return [made for made in map(self.of_table, tables) if made.rows and made.columns]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _places(name: str, titles: Sequence[str]) -> list[int]:
    """Places of the columns that ``name`` means: that of this title, else without its unit, else all that begin so."""
    wanted = name.lower()
    lower = [title.lower() for title in titles]
    for found in (
        [j for j, title in enumerate(lower) if title == wanted],
        [j for j, title in enumerate(lower) if title.partition(" (")[0] == wanted],
    ):
        if found:
            return found
    return [j for j, title in enumerate(lower) if title.startswith(wanted)]
