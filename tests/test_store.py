"""The store on disk: a mapping that remembers what its entries cost."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from harness.records import lease
from harness.records.store import DiskStore, folder_for
from methods.base import missing


class Times:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_entry_survives_with_its_tensors_and_its_cost(tmp_path: Path) -> None:
    clock = Times()
    store = DiskStore(tmp_path, clock)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.tensor([True, False])}
    clock.now = 5.0
    assert "x/1" not in store  # from here on it is being made
    clock.now = 8.0
    store["x/1"] = tensors
    assert store.made == {"x/1": 3.0} and store.cached == {}
    again = DiskStore(tmp_path, clock)
    assert list(again) == ["x/1"] and len(again) == 1 and "x/1" in again
    for name, tensor in again["x/1"].items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype
    assert again.cached == {"x/1": 3.0} and again.made == {}


def test_a_damaged_entry_is_missing_and_made_again(tmp_path: Path) -> None:
    clock = Times()
    DiskStore(tmp_path, clock)["a"] = {"t": torch.zeros(1)}
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"not a tensor")
    store, counts = DiskStore(tmp_path, clock), list[int]()
    store.on_made = counts.append
    clock.now = 5.0
    assert "a" not in store  # from here on it is being made
    clock.now = 8.0
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


# Cells that run at the same time


def test_entries_that_several_want_are_made_once_and_at_the_same_time(tmp_path: Path) -> None:
    """Each makes an entry only when the other has one in hand as well."""
    names = [f"expert {number}" for number in range(6)]
    stores, made = [DiskStore(tmp_path), DiskStore(tmp_path)], list[str]()
    both = threading.Barrier(2, timeout=300)

    def fill(own: DiskStore) -> None:
        while claimed := missing(own, names, 1):
            both.wait()
            made.extend(claimed)
            own[claimed[0]] = {"t": torch.ones(1)}

    threads = [threading.Thread(target=fill, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == names and [len(each.made) for each in stores] == [3, 3]
    assert all(set(each.made) | set(each.cached) == set(names) for each in stores)
    assert not (tmp_path / lease.FOLDER).exists()


def test_who_finds_all_that_is_missing_in_the_making_waits_and_counts_no_second_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Times()
    ours, theirs = DiskStore(tmp_path, clock), DiskStore(tmp_path, clock)
    assert theirs.claim(["a", "b"], 2) == ["a", "b"]

    def sleep(seconds: float) -> None:
        clock.now += 4.0
        if clock.now == 8.0:
            theirs["a"] = {"t": torch.zeros(1)}
            theirs["b"] = {"t": torch.zeros(1)}

    monkeypatch.setattr(time, "sleep", sleep)
    assert ours.claim(["a", "b"], 1) == [] and ours.waited == 8.0
    assert ours.cached == theirs.made == {"a": 8.0, "b": 0.0} and ours.made == {}


def test_what_another_left_unmade_is_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed, or failed, with an entry in hand: the others do not wait for ever."""
    clock = Times()
    ours, theirs = DiskStore(tmp_path, clock), DiskStore(tmp_path, clock)
    theirs.claim(["a"], 1)

    def sleep(seconds: float) -> None:
        clock.now += 4.0
        lease.release_all()

    monkeypatch.setattr(time, "sleep", sleep)
    assert ours.claim(["a"], 1) == ["a"]
    clock.now += 2.0
    ours["a"] = {"t": torch.zeros(1)}
    assert ours.made == {"a": 2.0} and ours.waited == 4.0


def test_a_mapping_that_nobody_shares_says_what_it_lacks() -> None:
    assert missing({"b": {}}, ["a", "b", "c", "d"], 2) == ["a", "c"]
