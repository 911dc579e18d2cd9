"""The environment of a process that measures: the same for every method, in one place."""

from __future__ import annotations

import os

from harness.startup import ROOT

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Variables that every cell's process starts with, whatever the method; one that the user has set stays as it is.

``GOMP_SPINCOUNT``: how often a thread of torch's OpenMP looks for the others before it sleeps. By default it looks for
milliseconds, in which the thread it waits for may have no core: beside another process a step took 30 times as long.
``GLIBC_TUNABLES``: memory in huge pages, which fresh activations fill faster.
``CUBLAS_WORKSPACE_CONFIG``: cuBLAS gives the same bits every time.
"""


def environment() -> dict[str, str]:
    """Variables of a process that measures: ``ENVIRONMENT``, and ours.

    It imports our packages from where we did, also where that is the working directory, and nothing else from there.
    """
    paths = [] if os.path.basename(ROOT) in ("site-packages", "dist-packages") else [ROOT]
    paths += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    python = {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    return {**ENVIRONMENT, **os.environ, **python}
