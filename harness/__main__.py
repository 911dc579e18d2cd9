"""All commands under one name: ``frepo-bench run …``, or ``python -m harness run …``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.errors import UserError, choose
from harness.command_line import command, end
from harness.startup import begin


class Command(NamedTuple):
    """A module with ``main(arguments, program=…)``, and arguments that come before the user's."""

    module: str
    meaning: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("harness.run", "distil data sets, measure what it costs, test what it gives"),
    "forecast": Command("harness.run", "what each cell of a run will need; nothing is run", ("--forecast",)),
    "list": Command("harness.run", "methods, data sets, networks, protocols, budgets, experiments", ("--list",)),
    "data": Command("harness.data", "report on a data set before a run: classes, duplicates, what fits"),
    "report": Command("harness.report", "make the tables of a folder of records again"),
    "figures": Command("harness.figures", "draw the figures of a folder of records, and fit exponents"),
    "watch": Command("harness.watch", "show the cells that run in a folder, until none runs any more"),
    "evaluate": Command("harness.evaluate", "ask questions of distilled sets that are there already"),
    "export": Command("harness.export", "write distilled sets in formats that other programs read"),
    "tune": Command("harness.tune", "try as many settings for every method, each for as long; the best are shown"),
    "regress": Command("harness.regress", "compare two folders of records: is anything worse?"),
    "schedule": Command("harness.schedule", "how long a grid takes on many devices: a simulation"),
    "check-method": Command("harness.check_method", "does a method keep to the interface? a dozen checks, in seconds"),
}


@command("frepo-bench")
def main(arguments: Sequence[str], program: str) -> int:
    """Run the command that ``arguments`` begin with; ``program`` is what the user calls all of this."""
    name, *others = arguments or [""]
    if name in ("-h", "--help"):
        print(f"usage: {program} COMMAND [options]\n\nBenchmark of dataset distillation.\n")
        print("\n".join(f"  {known:<12} {each.meaning}" for known, each in COMMANDS.items()))
        print(f"\n{program} COMMAND --help tells the options of a command.")
        return 0
    if not name:
        raise UserError(f"a command is missing: {', '.join(COMMANDS)}; see {program} --help")
    chosen = COMMANDS[choose("command", name, COMMANDS)]
    module = importlib.import_module(chosen.module)  # no other: help must not wait for torch
    status: int = module.main([*chosen.arguments, *others], program=f"{program} {name}")
    return status


def console() -> None:
    """The entry point of the installed program ``frepo-bench``."""
    begin()
    end(main())


if __name__ == "__main__":
    end(main(program="python -m harness"))
