"""Leases: one holder at a time, whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.errors import UserError
from harness.records import lease
from harness.records.lease import Held, Lease, Lost, Watch, path_of, take

ROOT = Path(__file__).parents[1]


class Clock:
    """A clock that a look at it moves on."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield path_of(tmp_path / "cell")
    lease.release_all()


def elsewhere(path: Path) -> None:
    """Let the lease at ``path`` be of another machine, whose process cannot be seen from here."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another"}))


def looks(watch: Watch, path: Path, most: int = 100) -> int:
    """After how many looks the lease at ``path`` is free."""
    return next(count for count in range(1, most) if watch.holder(path) is None)


def in_process(path: Path, then: str) -> subprocess.Popen[bytes]:
    """Another process, which takes the lease, says so, and does what ``then`` says."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom harness.records import lease\n"
        f"held = lease.take(Path(sys.argv[1]), 'a command')\nprint('taken', flush=True)\n{then}"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"taken\n"
    return process


def test_a_lease_has_one_holder_and_leaves_nothing(tmp_path: Path, path: Path) -> None:
    with take(path, "one command") as held:
        with pytest.raises(Held, match=f"process {os.getpid()} on .*: one command"):
            take(path, "another")
        held.check()
        with take(path_of(tmp_path / "other")):
            pass
    with take(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_works_apart_has_the_same_lease(tmp_path: Path) -> None:
    assert path_of(tmp_path / "cell") == path_of(tmp_path / lease.AGAIN / "cell")
    assert lease.exchange_of(tmp_path / lease.AGAIN / "cell").parent == path_of(tmp_path / "cell").parent


def test_all_leases_or_none(tmp_path: Path) -> None:
    paths = [path_of(tmp_path / name) for name in "cab"]
    with take(paths[2]), pytest.raises(Held), lease.taken(paths, ""):
        pass
    with lease.taken(paths, "") as leases:
        assert [each.path.name for each in leases] == ["a", "b", "c"]
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_want_it_one_has_it(path: Path) -> None:
    """Threads that take and release it: the file system alone tells them apart."""
    inside, most, turns = [0], [0], [0]
    counting = threading.Lock()

    def work() -> None:
        while turns[0] < 100:
            try:
                with take(path, wait=False) as held:
                    with counting:
                        inside[0] += 1
                        turns[0] += 1
                        most[0] = max(most[0], inside[0])
                    held.check()
                    with counting:
                        inside[0] -= 1
            except Held:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and turns[0] >= 100


def test_of_processes_that_take_over_a_dead_one_each_wins_alone(tmp_path: Path, path: Path) -> None:
    """Two processes race for a stale lease many times; the holder appends to a file that it finds empty."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.records import lease\n"
        "path, log = map(Path, sys.argv[1:])\nfor _ in range(60):\n"
        "    try:\n        with lease.take(path, wait=False) as held:\n"
        "            assert not log.exists()\n            log.write_text('mine')\n            held.check()\n"
        "            log.unlink()\n"
        "            if _ % 3 == 0:\n"  # leaves a lease of a process that is gone
        "                path.write_text(path.read_text().replace('\"pid\": ', '\"pid\": 99999'))\n"
        "    except lease.Held:\n        pass\n"
    )
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "log")]
    processes = [subprocess.Popen(arguments, cwd=ROOT) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]


def test_the_lease_of_a_killed_process_is_free_at_once(path: Path) -> None:
    process = in_process(path, "time.sleep(600)")
    with pytest.raises(Held, match=f"process {process.pid} on .*: a command"):
        take(path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a parent may not have asked how it ended
    with take(path, wait=False):
        pass
    process.communicate()


def test_a_process_with_the_number_of_another_is_not_the_holder(path: Path) -> None:
    held = Lease(path)
    path.write_text(path.read_text().replace('"started": "', '"started": "9'))
    with take(path, wait=False), pytest.raises(Lost):
        held.check()


def test_a_holder_elsewhere_lives_as_long_as_its_lease_changes(path: Path) -> None:
    Lease(path)
    elsewhere(path)
    watch = Watch(Clock(1.0))
    for beat in range(200):
        assert watch.holder(path) is not None
        path.write_text(json.dumps({**json.loads(path.read_text()), "beat": beat}))
    assert looks(watch, path) == lease.STALE_SECONDS + 1


def test_a_clock_that_jumps_shows_nothing(path: Path) -> None:
    """Forwards by a year, or backwards: neither looks like a minute of silence."""
    Lease(path)
    elsewhere(path)
    assert looks(Watch(Clock(3e7)), path) == lease.STALE_SECONDS / lease.MOST_SECONDS + 1
    Lease(path)
    elsewhere(path)
    backwards = Watch(Clock(-10.0))
    assert all(backwards.holder(path) is not None for _ in range(100))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: bytes([content[0] ^ 64]) + content[1:],
        lambda content: b"[" * 100_000,
        lambda content: b"[]",
        lambda content: b'{"pid": "x", "host": 3}',
        lambda content: content.replace(b'"pid": ', b'"pid": 1e'),
        lambda content: bytes(range(256)),
    ],
)
def test_a_damaged_lease_is_free_after_the_same_wait(path: Path, damage: Callable[[bytes], bytes]) -> None:
    held = Lease(path)
    path.write_bytes(damage(path.read_bytes()))
    assert looks(Watch(Clock(1.0)), path) == lease.STALE_SECONDS + 1
    with take(path), pytest.raises(Lost):
        held.check()


def test_what_is_no_file_is_one_line(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="no regular file"):
        take(path)
    path.rmdir()
    path.parent.rmdir()
    path.parent.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        take(path)


def test_a_suspended_holder_notices_and_disturbs_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    noticed = threading.Event()
    first = Lease(path, on_lost=noticed.set)
    with first._using:  # nothing of it goes on, as if it were suspended
        assert lease._remove(path, path.read_bytes())
        second = Lease(path)
        with pytest.raises(Lost):
            first.check()
    assert noticed.wait(60)
    first.release()
    second.check()
    with pytest.raises(Held):
        take(path)


def test_a_process_that_wakes_up_without_its_lease_ends(path: Path) -> None:
    """For real: it is stopped, its lease is taken over by its silence, and it goes on."""
    process = in_process(path, "held._on_lost = lambda: os._exit(lease.LEASED)\ntime.sleep(600)")
    process.send_signal(signal.SIGSTOP)
    watch = Watch(Clock(1.0))
    assert looks(watch, path, 200) >= lease.STALE_SECONDS
    with take(path, wait=False) as ours:
        process.send_signal(signal.SIGCONT)
        assert process.wait(120) == lease.LEASED
        ours.check()
    process.communicate()


def test_a_lease_that_is_alive_at_the_last_moment_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes between the look at it and the rename: it is put back."""
    held, rename = Lease(path), os.rename
    before = path.read_bytes()

    def late(source: Path, target: Path) -> None:
        with held._using:
            held._write()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert not lease._remove(path, before)
    monkeypatch.undo()
    held.check()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_a_killed_process_left_is_swept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed after it had renamed a lease and before it removed the file; one that is young may be in use."""
    held = Lease(path)
    left = path.with_name(f"{lease.ASIDE}{'0' * 32}")
    left.write_bytes(path.read_bytes())
    held.release()
    assert [each.name for each in path.parent.iterdir()] == [left.name]
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
    Lease(path).release()
    assert not path.parent.exists()
