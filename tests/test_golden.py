"""Our code against arrays that the official implementations produced (tests/golden/README.md)."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import methods
import tests.adapters
from tests.adapters import NOT_COVERED, VISIBLE, Adapter, Case, Mistake

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("GOLDEN_DIR") or GOLDEN)
FILES = sorted(FOLDER.glob("*.npz"))

ADAPTERS: dict[str, Adapter] = {}
MISTAKES: list[Mistake] = []
for _module in pkgutil.iter_modules(tests.adapters.__path__, "tests.adapters."):
    _loaded = importlib.import_module(_module.name)
    ADAPTERS.update(_loaded.ADAPTERS)
    MISTAKES.extend(_loaded.MISTAKES)


def adapter_for(path: Path) -> Adapter:
    """The adapter with the longest prefix that fits; a file that none fits is a failure.

    Skipped is only a file of a method that is known not to be here.
    """
    for prefix, method in NOT_COVERED.items():
        if path.name.startswith(prefix):
            pytest.skip(f"{path.name}: {method} is no method of this suite")
    fitting = [prefix for prefix in ADAPTERS if path.name.startswith(prefix)]
    assert fitting, f"{path.name}: no adapter knows this prefix; add one to tests/adapters/"
    return ADAPTERS[max(fitting, key=len)]


def test_there_are_golden_files() -> None:
    assert FILES, f"no .npz file in {FOLDER}"


def dtypes(path: Path) -> Sequence[torch.dtype]:
    """Those in which ``path`` is compared: files of whole deep networks, which take seconds, in one each."""
    if path.name.startswith("nets_"):
        return [torch.float64 if "32x32" in path.name else torch.float32]
    return [torch.float64, torch.float32]


@pytest.mark.parametrize(
    ("path", "dtype"),
    [pytest.param(path, dtype, id=f"{path.stem}-{dtype}") for path in FILES for dtype in dtypes(path)],
)
def test_golden(path: Path, dtype: torch.dtype) -> None:
    case = Case(path, dtype)
    adapter_for(path)(case)
    assert case.checked, f"{path.name}: the adapter compared nothing"


def test_an_unknown_prefix_fails() -> None:
    with pytest.raises(AssertionError, match="no adapter knows"):
        adapter_for(Path("unheard_of.npz"))


@pytest.mark.parametrize(("prefix", "method"), NOT_COVERED.items())
def test_only_files_of_methods_that_are_not_here_are_skipped(prefix: str, method: str) -> None:
    assert method not in methods.names(), f"{method} is here now: write the adapter of {prefix}"
    assert not [known for known in ADAPTERS if known.startswith(prefix)]
    with pytest.raises(pytest.skip.Exception, match=method):
        adapter_for(Path(f"{prefix}_h.npz"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_planted_mistake_is_seen(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mistake the same files pass above."""
    path = GOLDEN / mistake.file
    mistake.patch(monkeypatch)
    with pytest.raises(AssertionError):
        adapter_for(path)(Case(path, torch.float64, slack=VISIBLE))
