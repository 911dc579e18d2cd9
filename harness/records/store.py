"""The methods' store on disk: one file per entry, for everything that outlives a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.errors import printable
from harness.records.files import replacing
from harness.records.record import PROTOCOL_VERSION

_HEADER = "frepo_bench"
_DAMAGE = (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError)
_Stamp = tuple[int, int, int, int]


def folder_for(cache: Path, *key: object) -> Path:
    """The folder of ``cache`` for what depends on ``key`` (data, preprocessing, network, …) alone."""
    digest = hashlib.sha256(repr((PROTOCOL_VERSION, *key)).encode()).hexdigest()
    return cache / "store" / digest[:16]


class DiskStore(MutableMapping[str, Mapping[str, Tensor]]):
    """Name → tensors (CPU), read when asked for and not kept in memory.

    An entry that is damaged is as good as none: one line says so, and the method makes it again. Each entry remembers
    how long it took to make, so that a run that finds it can still report its true cost.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``now``: the clock for the cost of entries."""
        self._folder = folder
        self.on_made: Callable[[int], None] = lambda count: None
        """Called with how many entries were written so far."""
        self._now = now
        self._since = now()
        self.made: dict[str, float] = {}
        """Entries written through this object → seconds that each took since the one before."""
        self.cached: dict[str, float] = {}
        """Entries that were there already and were asked for → seconds that they took when they were made."""
        self._checked: dict[str, _Stamp] = {}
        """Entries whose checksum was right → what their files were like then."""

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        path = self._path(name)
        try:
            stamp = _stamp(path)
            header, tensors = _read(path)
            # A file that has not changed is not checked again: an expert may be read at every step.
            if self._checked.get(name) != stamp:
                if header["checksum"] != self._checksum(name, tensors):
                    raise ValueError("wrong checksum")
                if name not in self.made:
                    self.cached[name] = float(header["seconds"])
                self._checked[name] = stamp
        except FileNotFoundError:
            raise self._missing(name) from None
        except _DAMAGE:
            print(printable(f"  cache: {path} is damaged and is made again"), file=sys.stderr)
            path.unlink(missing_ok=True)
            raise self._missing(name) from None
        return tensors

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        seconds = self._now() - self._since
        content = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        checksum = self._checksum(name, content)
        header = json.dumps({"name": name, "seconds": seconds, "checksum": checksum}, sort_keys=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(name)) as temporary:
            safetensors.torch.save_file(content, temporary, metadata={_HEADER: header})
        self.cached.pop(name, None)
        self.made[name] = seconds
        self._since = self._now()
        self.on_made(len(self.made))

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._path(name).unlink()
        self.made.pop(name, None)
        self.cached.pop(name, None)

    def __contains__(self, name: object) -> bool:
        if name in self.made or name in self.cached:
            return True
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        for path in sorted(self._folder.glob("*.safetensors")):
            with contextlib.suppress(*_DAMAGE):
                yield _read(path)[0]["name"]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, name: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:80]
        return self._folder / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"

    def _checksum(self, name: str, tensors: Mapping[str, Tensor]) -> int:
        """CRC-32 over the place of an entry and its tensors: against accidents, not malice."""
        value = zlib.crc32(repr((self._folder.name, name)).encode())
        for key, tensor in sorted(tensors.items()):
            value = zlib.crc32(repr((key, tensor.dtype, tuple(tensor.shape))).encode(), value)
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
        return value

    def _missing(self, name: str) -> KeyError:
        self._since = self._now()  # what follows is the making of it
        return KeyError(name)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})[_HEADER])
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)


def _stamp(path: Path) -> _Stamp:
    """Properties of a file that change when it is written to or replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
