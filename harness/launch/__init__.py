"""Who runs the cells: this machine, or an engine that knows more of them.

A launcher is a module with a frozen dataclass ``Config``, whose fields are flags like ``--slurm.partition``, and a
function ``launcher(config, output, request)``: a context manager that yields a `Launcher`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError
from harness.plan.jobs import Job
from harness.plan.options import parse

if TYPE_CHECKING:
    from harness.plan.request import Evaluating

Launcher = Callable[[Iterable[Job]], Generator[Job, None, None]]
"""Takes jobs and yields each when what became of it is written into its folder, in any order.

A job that somebody else does at present is not yielded."""

LOCAL = "local"
LAUNCHERS = {
    LOCAL: "harness.launch.local",
    "slurm": "harness.launch.slurm",
    "ray": "harness.launch.ray",
}
"""Name → module, imported only where it is asked for."""
QUEUES = {"slurm"}
"""Those whose jobs outlive the command that submitted them: whoever works on a cell may be one of them."""


def defaults(name: str) -> Any:
    """The ``Config`` of the launcher ``name``, with its defaults."""
    return importlib.import_module(LAUNCHERS[name]).Config()


def launcher(request: Evaluating, output: Path) -> AbstractContextManager[Launcher]:
    """The launcher that ``request`` names, for results in ``output``.

    Raises UserError for options that are wrong, and where its package is not installed.
    """
    name = request.launcher
    if request.jobs is not None and name != LOCAL:
        raise UserError(f"--jobs is for cells on this machine: leave it out with --launcher {name}")
    config = parse({name: defaults(name)}, request.options)[name]
    made: AbstractContextManager[Launcher] = importlib.import_module(LAUNCHERS[name]).launcher(config, output, request)
    return made


def needed(flag: str, package: str, extra: str) -> None:
    """Raises UserError where ``package``, which ``flag`` needs and ``extra`` brings, is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f'{flag} needs the package {package}: pip install "frepo-bench[{extra}]"')
