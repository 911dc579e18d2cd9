"""The command line that writes distilled sets for other programs: ``python -m harness.export SET … --to FORMAT``."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError, choose, printable
from harness import exports
from harness.command_line import Parser, command, end, file_path, long_parser
from harness.plan.request import DEFAULT_OUTPUT
from harness.records.lease import FOLDER, Held, take
from harness.records.record import RECORD, SET

if TYPE_CHECKING:
    from harness.exports.base import Source
    from harness.records.record import Record

PROGRAM = "python -m harness.export"
RANGES = ("clip", "fit")


def _parser(program: str) -> Parser:
    parser = long_parser(
        program,
        f"{program} SET [SET …] --to FORMAT [options]",
        "Write distilled sets in formats that other programs read. SET: the folder of a distillation, a folder of\n"
        "such folders, or a .safetensors of this suite. Sets of others: harness.evaluate makes folders of them first.",
        "",
    )
    parser.add_argument("sets", type=file_path, nargs="*", metavar="SET", help="what is written")
    parser.add_argument("--to", metavar="FORMAT", help=", ".join(exports.names()))
    default = DEFAULT_OUTPUT / "exports/NAME-FORMAT"
    parser.add_argument(
        "--output", type=file_path, metavar="FOLDER", help=f"where to; several sets: into folders of it ({default})"
    )
    parser.add_argument("--range", metavar="NAME", help="pixels outside [0, 1] of pictures: clip (default), or fit")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    return parser


def parse(arguments: Sequence[str], program: str = PROGRAM) -> Any:
    """The options of a command line. Raises UserError for what is wrong without a look at the files."""
    parser = _parser(program)
    options = parser.parse(arguments)
    if options.help:
        parser.epilog = "\n".join(f"{name:<16}{exports.get(name).meaning}" for name in exports.names())
        parser.print_help()
        sys.exit(0)
    if not options.sets:
        raise UserError(f"no set is named; for instance: {program} results/local/NAME --to imagefolder")
    if options.to is None:
        raise UserError(f"--to is missing: {', '.join(exports.names())}")
    choose("format", options.to, exports.names())
    if options.range is not None:
        choose("range", options.range, RANGES)
        if not exports.get(options.to).pictures:
            raise UserError(f"--range means nothing for {options.to}, which keeps all numbers: leave it out")
    return options


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Write sets for other programs."""
    options = parse(arguments, program)
    left_out: list[str] = []
    sources = _named([each for path in options.sets for each in sources_of(path, options.range or "clip", left_out)])
    base = options.output or DEFAULT_OUTPUT / "exports"
    alone = len(options.sets) == 1 and (options.sets[0].is_file() or (options.sets[0] / RECORD).is_file())
    for name, source in sources.items():
        own = name if options.output else f"{name}-{options.to}"
        target = base if options.output and alone else base / own
        try:
            lines = write(source, options.to, target, force=options.force)
        except UserError as error:
            if len(sources) == 1:
                raise
            left_out.append(f"{name}: left out, {error}")
        else:
            print(printable(f"{name}: {len(source.synthetic.images)} images written to {target}"))
            print("".join(f"  {line}\n" for line in lines), end="")
    for line in left_out:
        print(printable(line), file=sys.stderr)
    return 1 if left_out else 0


def sources_of(path: Path, pixels: Any, left_out: list[str]) -> list[Source]:
    """The sets that ``path`` means. Raises UserError where there is none.

    ``pixels``: how pixels outside [0, 1] get into pictures. ``left_out`` takes a line for each set that is missing or
    not as it was written.
    """
    from harness.exports.base import Source
    from harness.records import artifact, record

    if path.is_dir():
        all_distilled, damaged = record.read_all(path)
        if damaged:
            raise UserError(damaged[0])
        files: list[tuple[Path, Record | None]] = []
        for each in all_distilled:
            if not (written := each.record["artifact"]):
                continue
            if not (reason := artifact.lost(each.folder / SET, written["sha256"])):
                files.append((each.folder / SET, each.record))
            elif len(all_distilled) == 1:
                raise UserError(f"{path}: {reason}")
            else:
                left_out.append(f"{each.folder.name}: left out, {reason}")
        if not files:
            if left_out:
                raise UserError(left_out[-1])
            raise UserError(f"no distilled set in {path}; of sets of others harness.evaluate makes folders first")
    elif path.suffix in (".npz", ".pt", ".pth"):
        raise UserError(f"{path} is no set of this suite; of sets of others harness.evaluate makes folders first")
    else:
        beside = path.name == SET and (path.parent / RECORD).is_file()
        files = [(path, record.load(path.parent / RECORD) if beside else None)]
    names = [file.resolve().parent.name if written else file.stem for file, written in files]
    return [
        Source(file, name, artifact.load(file), written, pixels)
        for name, (file, written) in zip(names, files, strict=True)
    ]


def _named(sources: Sequence[Source]) -> dict[str, Source]:
    """Name → set. Raises UserError where two have one name."""
    named: dict[str, Source] = {}
    for each in sources:
        if (other := named.setdefault(each.name, each)).path.resolve() != each.path.resolve():
            raise UserError(f"{other.path} and {each.path} have one name: export them one by one, with --output")
    return named


def write(source: Source, name: str, target: Path, *, force: bool = False) -> list[str]:
    """Write ``source`` in the format ``name`` into the folder ``target``, whole or not at all.

    Returns lines for the user. Raises UserError where ``target`` is there and not empty, unless ``force`` is given and
    it is an earlier export, where another process writes it, and where the format cannot express the set.
    """
    target = target.absolute()
    _check(target, force)
    try:
        lease = take(target.parent / FOLDER / f".{target.name}")
    except Held as holder:
        raise UserError(f"{target} is being written by {holder}; wait for it, or name another --output") from None
    with lease:
        _check(target, force)  # another process may have written it meanwhile
        return _write(source, name, target)


def _check(target: Path, force: bool) -> None:
    """Raises UserError where ``target`` must not be written."""
    from harness.records.picture_folders import FACTS

    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target} is no folder: name another --output")
    if target.is_dir() and any(target.iterdir()):
        if not (target / FACTS).is_file():
            raise UserError(f"{target} is not empty, and no export: name another --output")
        if not force:
            raise UserError(f"{target} is there already: give --force to replace it, or another --output")


def _write(source: Source, name: str, target: Path) -> list[str]:
    """As `write`, while nobody else writes ``target``."""
    from harness.exports.base import write_json
    from harness.records.picture_folders import FACTS

    kind = exports.get(name)
    partial = target.with_name(f".{target.name}.partial")
    earlier = target.with_name(f".{target.name}.earlier")
    for folder in (partial, earlier):
        shutil.rmtree(folder, ignore_errors=True)  # of a command that was ended
    partial.mkdir()
    try:
        lines = kind().write(source, partial)
        if (factor := source.distilled.factor) > 1:
            stored, count = len(source.distilled.images), len(source.synthetic.images)
            lines = [f"Decoded: {stored} stored images are {count}, {factor**2} in the pixels of one.", *lines]
        facts = {"format": name, **({"range": source.range} if kind.pictures else {}), **source.facts()}
        facts["set_sha256"] = hashlib.sha256(source.path.read_bytes()).hexdigest()
        write_json(partial / FACTS, facts)
        if target.exists():
            target.rename(earlier)
        partial.rename(target)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return lines


if __name__ == "__main__":
    end(main())
