"""Numbers that papers report, as ``reported.json`` has them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from harness.reports.groups import Group


@cache
def reported() -> dict[str, Any]:
    """The content of ``reported.json``; accuracies are fractions."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))
    return content


def reported_for(group: Group) -> list[dict[str, Any]]:
    """Entries of papers for the method, data set and ipc of ``group``."""
    wanted = tuple(group.distillation[key] for key in ("method", "dataset", "ipc"))
    return [e for e in reported()["entries"] if (e["method"], e["dataset"], e["ipc"]) == wanted]
