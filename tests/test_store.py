"""The store on disk: entries survive, damage is mended, costs are remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.records.store import DiskStore, folder_for


class Times:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_entry_survives_with_its_tensors_and_its_cost(tmp_path: Path) -> None:
    time = Times()
    store = DiskStore(tmp_path, time)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.tensor([True, False])}
    time.now = 5.0
    assert "x/1" not in store  # from here on it is being made
    time.now = 8.0
    store["x/1"] = tensors
    assert store.made == {"x/1": 3.0} and store.cached == {}
    again = DiskStore(tmp_path, time)
    assert list(again) == ["x/1"] and len(again) == 1 and "x/1" in again
    for name, tensor in again["x/1"].items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype
    assert again.cached == {"x/1": 3.0} and again.made == {}


def test_what_is_missing_is_a_key_error_and_deleting_deletes(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "not" / "yet")
    with pytest.raises(KeyError):
        store["a"]
    assert list(store) == []
    store["a"] = {"t": torch.zeros(2)}
    del store["a"]
    assert "a" not in store
    with pytest.raises(KeyError):
        del store["a"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_entry_is_as_good_as_none(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    DiskStore(tmp_path)["a"] = {"t": torch.arange(100.0)}
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[:-50],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "text": b"not a tensor",
        }[damage]
    )
    store = DiskStore(tmp_path)
    assert "a" not in store
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and path.name in message
    store["a"] = {"t": torch.ones(1)}
    assert torch.equal(DiskStore(tmp_path)["a"]["t"], torch.ones(1))


def test_an_entry_of_another_place_is_damage(tmp_path: Path) -> None:
    """A whole file, but of another name or of other data."""
    one, other = DiskStore(tmp_path / "1"), DiskStore(tmp_path / "2")
    one["a"], one["b"], other["a"] = ({"t": torch.full((2,), value)} for value in (1.0, 2.0, 3.0))
    (path,) = (tmp_path / "1").glob("a-*")
    for stranger in (next((tmp_path / "1").glob("b-*")), next((tmp_path / "2").iterdir())):
        path.write_bytes(stranger.read_bytes())
        assert "a" not in DiskStore(tmp_path / "1")


@pytest.mark.parametrize("checked", [False, True])
def test_an_entry_that_is_altered_while_it_is_in_use_is_not_used(tmp_path: Path, checked: bool) -> None:
    DiskStore(tmp_path)["a"] = {"t": torch.zeros(100)}
    store = DiskStore(tmp_path)
    if checked:
        store["a"]
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"\1")
    with pytest.raises(KeyError):
        store["a"]


def test_a_header_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store["a"] = {"t": torch.zeros(1)}
    (path,) = tmp_path.iterdir()
    save_file({}, path, {"frepo_bench": "[" * 100_000})
    assert list(store) == []
    with pytest.raises(KeyError):
        store["a"]


def test_folders_depend_on_everything_in_the_key(tmp_path: Path) -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), ("a",)]
    assert len({folder_for(tmp_path, *key) for key in keys}) == len(keys)
    assert folder_for(tmp_path, "a", 1) == folder_for(tmp_path, "a", 1)


def test_names_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store["a/b"] = {"t": torch.zeros(1)}
    store["a_b"] = {"t": torch.ones(1)}
    assert torch.equal(store["a/b"]["t"], torch.zeros(1)) and sorted(store) == ["a/b", "a_b"]
