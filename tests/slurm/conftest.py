"""A real Slurm on this machine, for as long as the tests run: ``make test-slurm`` installs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.slow import GATE
from tests.test_documents import ROOT

OPT_IN = "FREPO_BENCH_SLURM"
HERE = Path(__file__).parent
PATIENCE = 900.0
"""Seconds for anything to happen, also on a machine that is busy."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def until(happens: Callable[[], object], what: str) -> None:
    """Wait until ``happens`` returns something."""
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s: {what}"
        time.sleep(0.5)


def slurm(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass
class Driver:
    """``harness.run --launcher slurm`` as a process."""

    process: subprocess.Popen[bytes]
    log: Path

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    @property
    def text(self) -> str:
        return self.log.read_text()


@dataclass
class Cluster:
    """A cluster with one node, and an output folder there."""

    folder: Path
    gate: Path
    """The file that the method ``slow`` waits for."""
    drivers: int = 0

    @property
    def output(self) -> Path:
        return self.folder / "through slurm"

    def command(self, output: Path, *words: str) -> list[str]:
        usual = ["--dataset", "digits", "--budget", "smoke", "--device", "cpu", "--output", str(output)]
        return [sys.executable, "-m", "harness.run", *usual, *words]

    def local(self, *words: str) -> dict[str, bytes]:
        """The sets of a run on this machine without Slurm."""
        output = self.folder / "local"
        subprocess.run(self.command(output, *words), cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
        return sets(output)

    def driver(self, *words: str) -> Driver:
        self.drivers += 1
        log = self.folder / f"driver {self.drivers}.log"
        usual = ["--launcher", "slurm", "--slurm.cpus", "1", "--slurm.memory", "2GiB", "--slurm.poll", "3"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(self.output, *usual, *words), cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )
        return Driver(process, log)

    def jobs(self) -> dict[str, str]:
        """Job in the queue → its state; those that ended a moment ago are not."""
        lines = slurm("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def starts(self) -> dict[str, list[str]]:
        """Cell → its jobs, one for each start."""
        files = sorted((self.output / ".slurm/cells").glob("*.starts"))
        return {path.stem: [line.split()[0] for line in path.read_text().splitlines()] for path in files}

    def steps(self) -> dict[str, int]:
        """Folder → the step of its last checkpoint."""
        found: dict[str, int] = {}
        for path in self.output.glob("*/checkpoint/step-*.safetensors"):
            folder, step = path.parts[-3], int(path.name.split("-")[1])
            found[folder] = max(step, found.get(folder, 0))
        return found


def sets(output: Path) -> dict[str, bytes]:
    """Folder → the bytes of its set."""
    return {path.parent.name: path.read_bytes() for path in output.glob("*/set.safetensors")}


def processes(kind: str) -> dict[int, dict[str, str]]:
    """Process → its environment, of those with ``kind`` in their command line, of the jobs of this cluster."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if kind not in (folder / "cmdline").read_text().split("\0"):
                continue
            pairs = (pair.partition("=") for pair in (folder / "environ").read_text().split("\0"))
            environment = {name: value for name, _, value in pairs}
        except (OSError, UnicodeDecodeError):  # it has ended
            continue
        if environment.get("SLURM_CONF") == os.environ["SLURM_CONF"] and "SLURM_JOB_ID" in environment:
            found[int(folder.name)] = environment
    return found


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Munge and Slurm, in a folder of their own and on ports of their own; returns the path of ``slurm.conf``."""
    if os.environ.get(OPT_IN) != "1":
        pytest.skip("needs a real Slurm, as root: make test-slurm")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None] or (["root"] if os.geteuid() else []):
        pytest.fail(f"missing: {', '.join(missing)}; make test-slurm installs what it needs")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for number in range(2):
        subprocess.run(["mknod", str(folder / f"gpu{number}"), "c", "1", "3"], check=True)
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={folder}/gpu{number}\n" for number in range(2)))
    controller_port, node_port = _ports(2)
    text = (HERE / "slurm.conf").read_text()
    fill = {"folder": folder, "host": socket.gethostname().split(".")[0]}
    fill |= {"controller_port": controller_port, "node_port": node_port}
    for name, value in fill.items():
        text = text.replace(f"{{{name}}}", str(value))
    (folder / "slurm.conf").write_text(text)
    munge = [
        f"--{name}={folder}/munge/{name.split('-')[0]}" for name in ("key-file", "pid-file", "log-file", "seed-file")
    ]
    configuration = str(folder / "slurm.conf")
    commands = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge],
        ["slurmctld", "-D", "-f", configuration],
        ["slurmd", "-D", "-f", configuration],
    )
    before, running = os.environ.get("SLURM_CONF"), list[subprocess.Popen[bytes]]()
    os.environ["SLURM_CONF"] = configuration
    try:
        with (folder / "services.log").open("wb") as log:
            for command in commands:
                running.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
                if command[0] == "munged":
                    until((folder / "munge/socket").exists, "munged")
        until(
            lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout,
            "Slurm",
        )
        yield folder
    finally:
        for service in reversed(running):
            service.send_signal(signal.SIGTERM)
            service.wait(60)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


@pytest.fixture
def cluster(services: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(HERE / "slow.py", package / "slow_method.py")
    info = package / "slow_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow_method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[frepo_bench.methods]\nslow = slow_method:Slow\n")
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    made = Cluster(tmp_path, tmp_path / "gate")
    yield made
    subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], check=False)
    slurm("scancel", "--user=root")
    until(lambda: not slurm("squeue", "--noheader"), "the queue is empty")
