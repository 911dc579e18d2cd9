"""Leases of any content: free after the same wait, in words that can be printed, and nothing else is touched."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records.lease import MOST_SECONDS, STALE_SECONDS, Watch, _myself, take
from tests.properties.support import JSON, as_text, damaged, examples, mutated, watched


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leases")


def contents() -> st.SearchStrategy[bytes]:
    """What may stand in a lease: anything, or nearly that of this process."""
    whole = {**_myself(), "command": "python -m harness.run", "token": "0" * 32, "beat": "0000000001"}
    deep = [b"[" * depth for depth in (900, 4000)] + [b'{"pid":' + b"[" * 900 + b"]" * 900 + b"}"]
    texts = JSON.map(as_text) | mutated(whole).map(as_text)
    return st.binary(max_size=60) | texts | damaged(json.dumps(whole).encode()) | st.sampled_from(deep)


@examples(100)
@given(data=st.data())
def test_a_lease_of_any_content_is_free_after_the_same_wait(root: Path, data: st.DataObject) -> None:
    content = data.draw(contents())
    path, other = root / ".leases" / "cell", root / ".leases" / "other"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    other.write_bytes(content)
    clock = itertools.count(step=int(MOST_SECONDS))
    watch = Watch(lambda: float(next(clock)))
    with watched(root):
        looks = [watch.holder(path) for _ in range(int(STALE_SECONDS / MOST_SECONDS) + 1)]
        assert all(words is None or words.isprintable() for words in looks)
        assert looks[-1] is None and not path.exists()  # also of a process that lives: it may be suspended
        take(path).release()
    assert os.listdir(root / ".leases") == ["other"]
    assert other.read_bytes() == content
