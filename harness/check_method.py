"""The command line that checks a method: ``python -m harness.check_method NAME``.

Runs the conformance checks of ``methods.checks`` on a tiny task, without any data set. Exit status: 0 every check
passes, 1 one fails, 2 there is no such method.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import methods
from benchmarks.errors import UserError, choose, printable
from harness.command_line import Parser, command, end

PROGRAM = "python -m harness.check_method"
# torch is imported where it is used: --help must not wait for it.


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Check the method that is named, a line for each check."""
    parser = Parser(
        prog=program,
        description="Check that a method keeps to the interface of methods/base.py. It runs a few steps on tiny "
        "random images, in seconds. Exit status 0: every check passes; 1: one fails; 2: there is no such method.",
        epilog=f"methods: {', '.join(methods.names())}",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="a file of methods/, or an entry point of an installed package")
    name = choose("method", parser.parse(arguments).name, methods.names())

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the task is too small for more
    from methods.checks import CHECKS

    try:
        method = methods.get(name)
    except UserError as error:
        print(f"FAILED  {printable(str(error))}")
        return 1
    failed = 0
    for check in CHECKS:
        label = check.__name__.removeprefix("check_")
        try:
            check(name, method)
        except Exception as error:
            failed += 1
            print(f"FAILED  {label:<13} {printable(_reason(error, sys.modules.get(method.__module__)))}", flush=True)
        else:
            print(f"ok      {label:<13} {(check.__doc__ or '').splitlines()[0]}", flush=True)
    print(f"{name}: {f'{failed} of {len(CHECKS)} checks failed' if failed else f'all {len(CHECKS)} checks pass'}")
    return 1 if failed else 0


def _reason(error: Exception, module: object) -> str:
    """The message of a check; for any other error also its type, and the last line it passed in the method's module."""
    if isinstance(error, UserError):
        return str(error)
    file = getattr(module, "__file__", "")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f" ({file}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


if __name__ == "__main__":
    end(main())
