"""Checkpoints of FRePo, which flax wrote, without flax: MessagePack with arrays in it, and no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.errors import UserError

ARRAY = 1
"""Extension type of an array: MessagePack of (shape, name of the dtype, bytes), as flax.serialization writes it."""
NAMES = {"image": "x_proto", "label": "y_proto"}
"""Name in FRePo's ``.npz`` → name among the parameters."""


def begins_one(start: bytes) -> bool:
    """Whether ``start``, the first bytes of a file, begin a mapping of MessagePack that is not empty."""
    return start[:1] in (b"\xde", b"\xdf") or b"\x80" < start[:1] <= b"\x8f"


def read(path: Path) -> dict[str, Tensor]:
    """``image`` (n, H, W, C) and ``label`` (n, classes) of the synthetic set in a checkpoint.

    Raises UserError where they are not there, and where the package msgpack is missing; ValueError, TypeError or a
    like error for a damaged file.
    """
    try:
        import msgpack
    except ImportError as error:
        raise UserError(f"{path} may be a checkpoint of flax: pip install 'frepo-bench[flax]' to read it") from error

    state = msgpack.unpackb(path.read_bytes(), strict_map_key=False, ext_hook=lambda code, data: (code, data))
    parameters = state.get("params", {}) if isinstance(state, dict) else {}
    found: dict[str, Tensor] = {}
    for key, name in NAMES.items():
        match parameters.get(name):
            case (int(code), bytes(data)) if code == ARRAY:
                shape, dtype, content = msgpack.unpackb(data)
                found[key] = _tensor(shape, dtype, content)
            case _:
                raise UserError(f"{path} is MessagePack, but no checkpoint of FRePo: it has no array params/{name}")
    return found


def _tensor(shape: list[Any], dtype: str, content: bytes) -> Tensor:
    if dtype == "bfloat16":  # numpy has no such type
        return torch.frombuffer(bytearray(content), dtype=torch.bfloat16).reshape(shape)
    array = np.frombuffer(content, dtype=np.dtype(dtype)).reshape(shape)
    return torch.from_numpy(array.copy())
