"""Named tensors on disk. A cache costs time, never correctness: an entry that is damaged is as good as none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.errors import printable
from benchmarks.files import put_aside, replacing

Entry = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and facts about them that JSON can hold."""
HEADER = "frepo_bench"
"""Key of an entry's own header in the metadata of its safetensors file."""
_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError)


class Cache:
    """Entries of one folder by name, a file for each; on the CPU, and not kept in memory."""

    def __init__(self, folder: Path, what: str = "cache") -> None:
        """``what``: the word for an entry in the line about a damaged one."""
        self.folder, self._what = folder, what
        self._checked: dict[str, tuple[int, ...]] = {}
        """Entries whose checksum was right → properties of their files at that time."""

    def read(self, name: str) -> Entry | None:
        """The entry called ``name``; None where there is none. A damaged one is removed, and one line says so."""
        path = self._path(name)
        try:
            status = path.stat()
            stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            header, tensors = _load(path)
            # A file that has not changed is not checked again: an expert may be read at every step.
            if self._checked.get(name) != stamp:
                if header["checksum"] != self._checksum(name, tensors, header["about"]):
                    raise ValueError("wrong checksum")
                self._checked[name] = stamp
            return tensors, header["about"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _DAMAGE:
            print(printable(f"  {self._what}: {path} is damaged and is made again"), file=sys.stderr)
            with contextlib.suppress(OSError):
                put_aside(path, "damaged") if path.is_dir() else path.unlink()
            return None

    def write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write an entry, or replace it. Raises OSError and SafetensorError where the file cannot be written."""
        content = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        header = {"name": name, "about": about, "checksum": self._checksum(name, content, about)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(name)) as temporary:
            save_file(content, temporary, {HEADER: json.dumps(header)})

    def remove(self, name: str) -> None:
        """Remove an entry. Raises FileNotFoundError where there is none."""
        self._path(name).unlink()

    def names(self) -> Iterator[str]:
        """The names of all entries, without their checksums being looked at."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with contextlib.suppress(*_DAMAGE):
                yield _load(path)[0]["name"]

    def _path(self, name: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:80]
        return self.folder / f"{readable}-{hashlib.sha256(repr(name).encode()).hexdigest()[:16]}.safetensors"

    def _checksum(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
        """CRC-32 over all of an entry and its place: against accidents, not malice."""
        value = zlib.crc32(json.dumps([self.folder.name, name, about], sort_keys=True).encode())
        for key, tensor in sorted(tensors.items()):
            value = zlib.crc32(repr((key, tensor.dtype, tuple(tensor.shape))).encode(), value)
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
        return value


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise OSError("it is no regular file")  # to open a pipe might never end
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
