"""Folders of distillations → figures, as PNG, PDF and SVG, and fitted exponents.

python -m harness.figures results/local
python -m harness.figures results/local --images
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.errors import UserError, printable
from harness.command_line import command, end
from harness.report import folders_parser, read_folders
from harness.reports import images, scaling
from harness.reports.figures import write

__all__ = ["main", "write"]

PROGRAM = "python -m harness.figures"


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Draw the figures of folders, and fit exponents."""
    parser = folders_parser(program, "Draw the figures of folders, and fit exponents.")
    parser.add_argument(
        "--images", action="store_true", help="draw the images of the sets, and their learned labels, instead"
    )
    parsed = parser.parse(arguments)
    output, distilled, damaged = read_folders(parser, parsed)
    if parsed.images:
        written = images.write(distilled, output)
    else:
        written = [*scaling.write(distilled, output), *write(distilled, output)]
    if not written:
        missing = "sets" if parsed.images else "curves, and no iterations at several widths"
        raise UserError(f"nothing in {', '.join(map(str, parsed.folders))} to draw: no {missing}")
    print("\n".join(printable(str(path)) for path in written))
    return 1 if damaged else 0


if __name__ == "__main__":
    end(main())
