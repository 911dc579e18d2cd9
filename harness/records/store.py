"""The methods' store on disk, for what outlives a run, and the seconds that its entries took."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.cache import Cache
from harness.records.lease import FOLDER, LOOK_SECONDS, Held, Lease, Watch, take
from harness.records.record import PROTOCOL_VERSION


def folder_for(cache: Path, *key: object) -> Path:
    """The folder of ``cache`` for what depends on ``key`` (data, preprocessing, network, …) alone."""
    digest = hashlib.sha256(repr((PROTOCOL_VERSION, *key)).encode()).hexdigest()
    return cache / "store" / digest[:16]


class DiskStore(MutableMapping[str, Mapping[str, Tensor]]):
    """Name → tensors (CPU), in a `Cache`.

    Each entry remembers how long it took to make, so that a run that finds it can still report its true cost.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.perf_counter) -> None:
        """``now``: the clock for the cost of entries."""
        self._cache = Cache(folder)
        self.on_made: Callable[[int], None] = lambda count: None
        """Called with how many entries were written so far."""
        self._now = now
        self._since = now()
        self.made: dict[str, float] = {}
        """Entries written through this object → seconds that each took since the one before."""
        self.cached: dict[str, float] = {}
        """Entries that were there already and were asked for → seconds that they took when they were made."""
        self.waited = 0.0
        """Seconds for which `claim` has waited for others."""
        self._folder, self._watch = folder, Watch()
        self._claimed: dict[str, Lease] = {}

    def claim(self, names: Sequence[str], at_most: int) -> list[str]:
        """At most so many of ``names`` that are missing and that nobody else makes; they are ours until they are set.

        Waits where others make all that are missing; empty where all are there. Raises UserError where the folder
        cannot be written.
        """
        left, claimed = list(names), list[str]()
        while True:
            for name in left.copy():
                if len(claimed) == at_most:
                    break
                with contextlib.suppress(Held):
                    if name not in self and name not in self._claimed:
                        self._claimed[name] = take(self._lease_of(name), wait=False, watch=self._watch)
                    if name not in self:
                        claimed.append(name)
                    elif name in self._claimed:  # somebody has made it meanwhile
                        self._claimed.pop(name).release()
                    left.remove(name)
            if claimed or not left:
                self._since = self._now()
                return claimed
            begin = self._now()
            while left and all(self._watch.holder(self._lease_of(name)) for name in left):
                time.sleep(LOOK_SECONDS)
            self.waited += self._now() - begin

    def _lease_of(self, name: str) -> Path:
        return self._folder / FOLDER / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        entry = self._cache.read(name)
        if entry is None:
            self._since = self._now()  # the method makes the entry from here on
            raise KeyError(name)
        tensors, about = entry
        if name not in self.made:
            self.cached[name] = about["seconds"]
        return tensors

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        seconds = self._now() - self._since
        self._cache.write(name, tensors, {"seconds": seconds})
        self.cached.pop(name, None)
        self.made[name] = seconds
        if name in self._claimed:
            self._claimed.pop(name).release()
        self._since = self._now()
        self.on_made(len(self.made))

    def __delitem__(self, name: str) -> None:
        try:
            self._cache.remove(name)
        except FileNotFoundError:
            raise KeyError(name) from None
        self.made.pop(name, None)
        self.cached.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self.made or name in self.cached or super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return self._cache.names()

    def __len__(self) -> int:
        return sum(1 for _ in self)
