"""The store on disk: a mapping that remembers what its entries cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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


def test_a_damaged_entry_is_missing_and_made_again(tmp_path: Path) -> None:
    time = Times()
    DiskStore(tmp_path, time)["a"] = {"t": torch.zeros(1)}
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"not a tensor")
    store, counts = DiskStore(tmp_path, time), []
    store.on_made = counts.append
    time.now = 5.0
    assert "a" not in store  # from here on it is being made
    time.now = 8.0
    store["a"] = {"t": torch.ones(1)}
    assert torch.equal(store["a"]["t"], torch.ones(1)) and store.made == {"a": 3.0} and store.cached == {}
    assert counts == [1]


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


def test_folders_depend_on_everything_in_the_key(tmp_path: Path) -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), ("a",)]
    assert len({folder_for(tmp_path, *key) for key in keys}) == len(keys)
    assert folder_for(tmp_path, "a", 1) == folder_for(tmp_path, "a", 1)
