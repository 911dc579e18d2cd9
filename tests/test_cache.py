"""Entries on disk survive, and whatever is wrong with a file is as good as no entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.cache import HEADER, Cache

ABOUT = {"seconds": 1.5, "names": ["a", "\udcff"]}


def zeros(folder: Path) -> Path:
    """The file of an entry ``a`` in ``folder``."""
    Cache(folder).write("a", {"t": torch.zeros(100)}, ABOUT)
    [path] = folder.iterdir()
    return path


def test_an_entry_survives(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).T.requires_grad_(),
        "b": torch.tensor(7),
        "c": torch.tensor([True, False]),
        "d": torch.ones(3, dtype=torch.bfloat16),
        "e": torch.empty(0, 4),
    }
    cache = Cache(tmp_path / "not" / "yet")
    assert cache.read("x/1") is None and list(cache.names()) == []
    cache.write("x/1", tensors, ABOUT)
    again = Cache(cache.folder)
    for _ in range(2):
        entry = again.read("x/1")
        assert entry is not None and entry[1] == ABOUT and entry[0].keys() == tensors.keys()
        for name, tensor in entry[0].items():
            assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype
    assert list(again.names()) == ["x/1"]
    again.remove("x/1")
    assert cache.read("x/1") is None


@pytest.mark.parametrize("place", [0.0, 0.01, 0.1, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_entry_is_as_good_as_none(
    cut: bool, place: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zeros(tmp_path)
    content = path.read_bytes()
    where = int(place * len(content))
    path.write_bytes(content[:where] + (b"" if cut else bytes([content[where] ^ 0x10]) + content[where + 1 :]))
    assert Cache(tmp_path).read("a") is None and not path.exists()
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and path.name in message
    assert zeros(tmp_path).read_bytes() == content


@pytest.mark.parametrize("header", [None, {"other": "{}"}, {HEADER: "{}"}, {HEADER: "[" * 100_000}])
def test_a_file_with_another_header_is_damage(header: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({}, zeros(tmp_path), header)
    assert list(Cache(tmp_path).names()) == [] and Cache(tmp_path).read("a") is None


def test_an_entry_of_another_name_or_folder_is_damage(tmp_path: Path) -> None:
    path = zeros(tmp_path / "1")
    Cache(tmp_path / "1").write("b", {"t": torch.ones(100)}, ABOUT)
    for stranger in (next((tmp_path / "1").glob("b-*")), zeros(tmp_path / "2")):
        path.write_bytes(stranger.read_bytes())
        assert Cache(tmp_path / "1").read("a") is None


@pytest.mark.parametrize("checked", [False, True])
def test_an_entry_that_is_altered_while_it_is_in_use_is_not_used(tmp_path: Path, checked: bool) -> None:
    path = zeros(tmp_path)
    cache = Cache(tmp_path)
    if checked:
        cache.read("a")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"\1")
    assert cache.read("a") is None


def test_names_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    cache, names = Cache(tmp_path), ["a/b", "a_b", "\udcff" * 200]
    for value, name in enumerate(names):
        cache.write(name, {"t": torch.tensor(value)}, {})
    assert [int(entry[0]["t"]) for name in names if (entry := cache.read(name))] == [0, 1, 2]
    assert sorted(cache.names()) == sorted(names)
