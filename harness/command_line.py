"""Parts that all commands share: an error in one line, the nearest flag where there is none, the exit status."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import math
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from benchmarks.errors import UserError, nearest, printable
from harness.startup import INTERRUPTED, interruptible
from harness.stopping import NOT_DONE, Stopped

CLOSED_PIPE = 141
"""Exit status where the reader of our output is gone (``… | head -1``): as of a program that SIGPIPE ended."""

NEGATIVE = re.compile(r"-(\.?\d|inf\b|nan\b)", re.IGNORECASE)
"""Begins a value, and not a flag, although it has a dash."""
LARGEST = 2**63 - 1
"""The largest whole number that is taken: no more fit into a tensor."""


class Parser(argparse.ArgumentParser):
    """Raises UserError for what it does not understand, and for a flag that is given twice, by whichever name."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace("ignored explicit argument", "takes no value, but has")
        raise UserError(message.replace("expected one argument", "no value is given"))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        self._negative_number_matcher = NEGATIVE  # "-5GiB" is a value, too, that can be told to be wrong
        self._check_repeated(arguments)
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].partition("=")[0]
            # They are too many to be listed, and a wild guess is worse than none.
            guess = nearest(flag.lstrip("-"), (known.lstrip("-") for known in self._option_string_actions), 0.6)
            raise UserError(f"unknown argument {flag!r}" + (f": did you mean --{guess}?" if guess else "; see --help"))
        return known

    def _check_repeated(self, arguments: Sequence[str]) -> None:
        flags = [argument.partition("=")[0] for argument in arguments]
        seen = Counter(flag for flag in flags if flag in self._option_string_actions)
        names: dict[argparse.Action, str] = {}
        for flag, count in seen.items():
            other = names.setdefault(self._option_string_actions[flag], flag)
            if count > 1:
                raise UserError(f"{flag} is given twice: leave one of them out")
            if other != flag:
                raise UserError(f"{other} and {flag} mean the same: leave one of them out")


def long_parser(program: str, usage: str, description: str, epilog: str) -> Parser:
    """A parser whose help has tables, and is no command of its own: what stands beside ``--help`` counts."""
    parser = Parser(
        prog=program,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    return parser


def listed(title: str, names: Iterable[str], indent: int) -> str:
    """A row of a table below a help text, over several lines where there are many ``names``."""
    return textwrap.fill(", ".join(names), 100, initial_indent=f"{title:<{indent}}", subsequent_indent=indent * " ")


def whole(text: str) -> int:
    """A whole number on the command line."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}") from None
    if abs(number) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is too large")
    return number


def finite(text: str) -> float:
    """A finite number on the command line."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, not {text!r}")
    return number


def file_path(text: str) -> Path:
    """A file or folder on the command line; ``~`` is the user's home, also where no shell replaced it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"there is no such user: {text!r}") from None


def new_file(text: str) -> Path:
    """A file to be written, on the command line."""
    path = file_path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    return path


def command(program: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate the work of a command: the result is its ``main``, which reports errors and returns the exit status.

    The work gets the arguments (by default those of the process), the name by which the user called the command (by
    default ``program``), and all further keywords of ``main``.
    """

    def made(work: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(work)
        def main(arguments: Sequence[str] | None = None, *, program: str = program, **more: Any) -> int:
            given = sys.argv[1:] if arguments is None else arguments
            return exit_status(lambda: work(given, program, **more))

        return main

    return made


def exit_status(work: Callable[[], int]) -> int:
    """The status that ``work`` returns.

    After a line on standard error 2 for a UserError, a file that cannot be read or written, and too little memory, 130
    for Ctrl-C, and 75 for another signal that asks for an end; without a line 141 where the reader of our output is
    gone.
    """
    try:
        with interruptible():
            try:
                status = work()
            except SystemExit as ended:  # argparse, after --help
                status = int(ended.code or 0)
            _flush()
            return status
    except UserError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except Stopped as error:
        print(error, file=sys.stderr)
        return NOT_DONE
    except BrokenPipeError:
        _silence(sys.stdout)
        _silence(sys.stderr)
        return CLOSED_PIPE
    except MemoryError as error:
        return _failed(f"there is too little memory for this{f': {error}' if str(error) else ''}")
    except OSError as error:
        try:
            _flush()
        except OSError:  # it was standard output that could not be written
            _silence(sys.stdout)
        place = "" if error.filename is None else f"{error.filename}: "
        return _failed(f"{place}{error.strerror or error}")


def end(status: int) -> NoReturn:
    """End the process, without a search through all of torch for garbage, which takes half a second."""
    gc.freeze()
    sys.exit(status)


def _flush() -> None:
    if sys.stdout is not None:  # it is where the process was started without
        sys.stdout.flush()


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {printable(message)}", file=sys.stderr)
    return 2


def _silence(stream: TextIO | None) -> None:
    """Lead what is still to be written to nowhere: Python would try again at exit, and complain."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
