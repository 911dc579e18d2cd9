"""A comparison for programs: JSON, JUnit's XML, annotations of GitHub, and files of numbers for other trackers.

A finding is a failure where it is worse or missing. The statistics are those of the comparison; a tracker that compares
numbers of its own knows less about them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from xml.etree import ElementTree

from benchmarks.errors import printable
from harness.reports.groups import NONE
from harness.reports.regressions import DECISIVE, FRACTION, Comparison, Finding, Number, markdown

SCHEMA = 1
"""Of the JSON; raised where a field changes its meaning."""


def as_json(comparison: Comparison) -> str:
    """All findings with their numbers, in the units that they name; ``ratio`` is after divided by before."""
    findings = []
    for each in comparison.findings:
        before, after = each.numbers
        ratio = after.value / before.value if before and after and before.value else None
        texts = {"before": each.before, "after": each.after, "change": each.change}
        findings.append(
            {
                **{
                    name: getattr(each, name) for name in ("verdict", "cell", "quantity", "device", "unit", "lost", "p")
                },
                **{"before": before and asdict(before), "after": after and asdict(after), "ratio": ratio},
                "text": texts,
            }
        )
    content = {"schema": SCHEMA, "status": comparison.status, "findings": findings, "notes": list(comparison.notes)}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def junit(comparison: Comparison) -> str:
    """A test case for each number of each cell. What was not compared is skipped."""
    suite = ElementTree.Element("testsuite", name="harness.regress")
    for each in comparison.findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname=printable(each.cell), name=printable(each.quantity), time="0"
        )
        if each.verdict in DECISIVE:
            ElementTree.SubElement(case, "failure", type=each.verdict, message=printable(_sentence(each)))
        elif each.verdict == "not compared":
            ElementTree.SubElement(case, "skipped", message=printable(each.change))
    for count, kind in (("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")):
        suite.set(count, str(len(suite.findall(kind))))
    suite.set("errors", "0")
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def github(comparison: Comparison) -> str:
    """Commands that annotate a run of GitHub Actions: an error for each failure, a warning for what is lost."""
    failures = [each for verdict in DECISIVE for each in comparison.of(verdict)]
    told = [("error", each) for each in failures]
    told += [("warning", each) for each in comparison.findings if each.lost and each not in failures]
    return "".join(
        f"::{level} title={_property(f'{each.verdict}: {each.quantity}')}::{_data(_sentence(each))}\n"
        for level, each in told
    )


def _sentence(finding: Finding) -> str:
    numbers = f": {finding.before} → {finding.after}" if finding.verdict == "worse" else ""
    change = f" ({finding.change})" if finding.change != NONE else ""
    return f"{finding.cell}, {finding.quantity}{numbers}{change}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "markdown": markdown,
    "json": as_json,
    "junit": junit,
    "github": github,
}


# --- numbers of one side, for trackers that keep a history ------------------------------------------------------------


def bencher(comparison: Comparison) -> dict[str, str]:
    """``{"": text}`` for ``bencher run --adapter json``: cell → measure → value, with its spread."""
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for finding, number in _numbers(comparison):
        bounds = {"lower_value": number.low, "upper_value": number.high}
        known = {name: bound for name, bound in bounds.items() if bound is not None}
        measure = re.sub(r"[^a-z0-9]+", "-", finding.quantity.lower()).strip("-")
        measured.setdefault(finding.cell, {})[measure] = {"value": number.value, **known}
    return {"": _text(measured)}


def github_action_benchmark(comparison: Comparison) -> dict[str, str]:
    """Ending of a file's name → its text: that tool wants one direction in a file. It does not know devices, so they
    are in the names."""
    texts: dict[str, list[dict[str, str | float]]] = {"-smaller": [], "-bigger": []}
    for finding, number in _numbers(comparison):
        name = f"{finding.cell}: {finding.quantity}, on {finding.device}"
        entry: dict[str, str | float] = {"name": name, "unit": finding.unit, "value": number.value}
        if number.low is not None and number.high is not None:
            entry["range"] = f"{number.low:.6g} to {number.high:.6g}"
        texts["-bigger" if finding.unit == FRACTION else "-smaller"].append(entry)
    return {ending: _text(entries) for ending, entries in texts.items() if entries}  # it refuses an empty one


EXPORTS: dict[str, Callable[[Comparison], dict[str, str]]] = {
    "bencher": bencher,
    "github-action-benchmark": github_action_benchmark,
}
"""Tracker → what makes its files, from a comparison of a side with itself."""


def _numbers(comparison: Comparison) -> Iterator[tuple[Finding, Number]]:
    for each in comparison.findings:
        if (number := each.numbers[1]) is not None:
            yield each, number


def _text(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
