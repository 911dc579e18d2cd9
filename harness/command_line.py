"""What the commands share: one line for an error, the nearest flag for one that does not exist, the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from benchmarks.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Raises UserError for what it does not understand."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].partition("=")[0]
            guess = nearest(flag, self._option_string_actions)
            raise UserError(f"unknown argument {flag!r}" + (f": did you mean {guess}?" if guess else "; see --help"))
        return known


def exit_status(work: Callable[[], int]) -> int:
    """What ``work`` returns; after a line on standard error 2 for a UserError and 130 for Ctrl-C."""
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
