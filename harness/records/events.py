"""The events of a distillation: a line of JSON at some of its steps, written while it runs.

Each has ``step`` of ``steps``, the ``seconds`` of all steps so far, the ``step_seconds`` of the latest timing window,
the ``losses`` of the step, and ``memory_bytes`` above the idle level. What is not known or not finite is null.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from benchmarks.files import put_aside, regular, replacing

LARGEST = 1e18
"""Numbers are smaller."""


def read(path: Path) -> list[dict[str, Any]]:
    """The events in the file ``path``; none where there is no such file. Damaged lines are left out, such as a last one
    that is not written to its end, or one with a value that no event has. Raises UserError for a folder or a pipe."""
    return [event for _, event in _lines(path) if _is_whole(event)]


def _is_whole(event: Mapping[str, Any]) -> bool:
    """Whether all fields are there and have their types."""

    def number(value: Any) -> bool:
        return type(value) in (int, float) and abs(value) < LARGEST

    losses, memory = event.get("losses"), event.get("memory_bytes")
    return (
        all(type(event.get(name)) is int for name in ("step", "steps"))
        and all(number(event.get(name)) for name in ("seconds", "step_seconds"))
        and isinstance(losses, dict)
        and all(value is None or number(value) for value in (memory, *losses.values()))
        and "memory_bytes" in event
    )


def continued(path: Path, done: int) -> IO[str]:
    """The file of events, to append to: with the lines up to step ``done`` alone, as later steps are taken again."""
    if os.path.lexists(path) and not path.is_file():  # such as a folder, or a pipe, which might never end
        put_aside(path, "damaged")
    if done == 0 or not path.exists():
        return open(path, "w", encoding="utf-8")
    kept = [f"{line}\n" for line, event in _lines(path) if event["step"] <= done]
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    return open(path, "a", encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of ``path`` that are whole, and the events in them."""
    try:
        with open(path, encoding="utf-8", errors="replace", opener=regular) as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("step"), int):
                yield line, event
