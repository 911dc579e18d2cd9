"""Parts that the property-based tests share: how many inputs, who writes where, strategies for damaged content."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

from benchmarks.errors import UserError

TIMES = os.environ.get("PROPERTY_TIMES")
"""How many times as many inputs as usual, at random instead of always the same; ``make fuzz`` sets it."""
SECONDS, WAITED = 60, 1800
"""An input that takes more time of the processor, or more time altogether, hangs; the slowest takes a few seconds."""
MEMORY = 1 << 29
"""Bytes by which a small input may raise the peak of the process."""


def examples(count: int) -> settings:
    """A decorator: usually so many inputs."""
    return settings(max_examples=max(1, round(count * float(TIMES or 1))))


# Watching


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    **dict.fromkeys(("os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.utime"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
}
"""Event of Python's audit → how many paths, from the first argument on, it changes."""
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")
OURS = ("git", "uname")
"""Programs that are asked for the version of the code, and for the machine."""
_watched: list[tuple[Path, list[str]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or not (event == "open" or event in PATHS or event in RUNS):
        return
    root, seen = _watched[-1]
    if event in RUNS:
        words = arguments[1] if event == "subprocess.Popen" else arguments[:1]
        if event != "os.fork" and os.path.basename(os.fsdecode(words[0])) not in OURS:
            seen.append(f"{event} {words!r}")
        return
    if event == "open":
        _, mode, flags = arguments
        paths = arguments[:1] if set(mode or "") & set("wax+") or (flags or 0) & WRITES else ()
    else:
        paths = arguments[: PATHS[event]]
    for path in paths:
        if isinstance(path, int):
            continue
        folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
        base = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else "."
        real = os.path.realpath(os.path.join(os.path.realpath(base), os.fsdecode(path)))
        # The cache of Python is written where a module is imported only when it is used.
        if not f"{real}/".startswith((f"{root}/", "/dev/null", "/proc/")) and "__pycache__" not in real:
            seen.append(f"{event} {real!r}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(root: Path) -> Iterator[None]:
    """Fails where anything outside of ``root`` is written, another program runs, or time or memory do not end."""

    def late(*_: object) -> None:
        raise AssertionError("it does not end")

    seen: list[str] = []
    handlers = {number: signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITED)
    _watched.append((root.resolve(), seen))
    try:
        yield
    finally:
        _watched.pop()
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not seen, seen
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    assert grown < MEMORY, f"{grown >> 20} MiB"


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def ended(main: Callable[..., int], arguments: Sequence[str], statuses: Sequence[int], **options: Any) -> Ended:
    """Run a command in this process, with streams as it has them as a program.

    Fails for another status, for a failure that is not a line at the end, and for anything that ``main`` raises.
    """
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="replace", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments), **options)
    shown = Ended(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
    assert status in statuses, shown
    assert "Traceback" not in shown.err, shown
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (status == 2), shown
    assert not errors or shown.err.endswith(f"{errors[0]}\n"), shown
    return shown


def refused_or(work: Callable[[], Any]) -> Any:
    """The result of ``work``; None where it raises a UserError that says something."""
    try:
        return work()
    except UserError as error:
        assert str(error).strip()
        return None


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """``folder`` as the working directory."""
    with contextlib.chdir(folder):
        yield


# Text and JSON


CHARACTERS = st.one_of(
    st.characters(codec="utf-8", exclude_characters="\0/~"),
    st.sampled_from("\udc80\udcff\n\r\t\x1b\u2028\u202e\x85 .-_@:=,|&<>$%#\\{}\"'é数"),
)
"""Characters of the command line and of file names; surrogates stand for bytes that are no UTF-8."""
WORDS = st.text(CHARACTERS, max_size=12)
TEXTS = st.one_of(WORDS, st.text(st.characters(), max_size=12))
NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**18, 10**30, 10**300, -(10**400)]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e299, 1.7e308, float("nan"), float("inf"), -float("inf"), 0.5]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def nodes(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below ``content``."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in parts:
        yield content, key
        yield from nodes(part)


@st.composite
def mutated(draw: st.DrawFn, content: Any, most: int = 3) -> Any:
    """A copy of JSON ``content`` in which a few values, keys or items are other ones, missing, or there twice."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, most))):
        places = list(nodes(content))
        if not places:
            return draw(JSON)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(["replace", "replace", "number", "remove", "rename", "copy", "list", "nest"]))
        if change == "replace":
            container[key] = draw(JSON)
        elif change == "number":
            container[key] = draw(NUMBERS)
        elif change == "remove":
            del container[key]
        elif change == "list":
            container[key] = [container[key]]
        elif change == "nest":
            for _ in range(draw(st.sampled_from([1, 90, 120]))):
                container[key] = {"": container[key]}
        elif isinstance(container, list):
            container.append(container[key])
        elif change == "rename":
            container[draw(TEXTS)] = container.pop(key)
        else:
            container[draw(TEXTS)] = container[key]
    return content


def as_text(content: Any) -> bytes:
    """JSON as Python writes it: with NaN and Infinity, and lone surrogates as escapes."""
    return json.dumps(content).encode()


# Bytes


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` cut, with a few bits or bytes changed, a part there twice, or with other bytes before or after it."""
    kind = draw(st.sampled_from(["cut", "bits", "bytes", "swap", "insert", "remove", "after", "other"]))
    where = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:where]
    if kind == "other":
        return draw(st.binary(max_size=200))
    if kind == "after":
        return content + draw(st.binary(max_size=40))
    if kind == "insert":
        return content[:where] + draw(st.binary(max_size=40)) + content[where:]
    if kind == "remove":
        return content[:where] + content[where + draw(st.integers(1, 64)) :]
    if kind == "swap":
        other = draw(st.integers(0, max(0, len(content) - 1)))
        return content[:where] + content[other : other + 16] + content[where + 16 :]
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        if changed:
            changed[at] = changed[at] ^ (1 << draw(st.integers(0, 7))) if kind == "bits" else draw(st.integers(0, 255))
    return bytes(changed)
