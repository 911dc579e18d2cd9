"""The one helper that knows about the accelerator: a function captured once as a CUDA graph, and replayed from then on.

A step is hundreds of kernels, and to launch them one by one can take longer than to run them; a graph is launched at
once. It is a list of kernels and addresses: at a replay nothing of Python runs. So a captured function works on tensors
that stay where they are, takes no number from the host but through one of them, and never waits for the device.

Of linear algebra, ``cholesky_ex`` and ``cholesky_solve`` of one matrix leave their status on the device: by torch's
source they are cuSOLVER's potrf and potrs (or cuBLAS's trsm), MAGMA or not. ``cholesky`` and ``solve`` look at it;
``eigh``, ``svd`` and ``inv`` copy to the host: none of these can be captured (pytorch issues 96632, 188355, 195731).

Copies of up to 64 KiB from the host, as the indices of a batch, do not wait for the device, pinned memory or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

WARM_UP = 3
"""Calls before the captured one: libraries load kernels, make handles and choose algorithms in the first of them."""

State = TypeVar("State")


class Graphs(Generic[State]):
    """Functions of a state as CUDA graphs, one per function and not per state.

    ``work`` is a state on a CUDA device that the graphs work on; ``tensors`` gives all tensors of a state that the
    functions read or change, in the same order for every state. Any state is copied into ``work`` before a function and
    back after it, on the device: states come and go (FRePo replaces networks) without another capture, and ten of them
    take no more captures than one. Graphs of one ``Graphs`` share memory, so two of them must not run at once.
    """

    def __init__(self, work: State, tensors: Callable[[State], Sequence[Tensor]]) -> None:
        self.work, self.tensors = work, tensors
        self.stream = torch.cuda.Stream(tensors(work)[0].device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[..., dict[str, Tensor]]) -> Graph[State]:
        """``function(state, *inputs)`` as a graph, captured when it is called; it returns 0-d tensors by name.

        What else it changes in place must stay where it is, too. Inputs are tensors of the same shape in every call, or
        numbers, in place of which it is given 0-d tensors in float64.
        """
        return Graph(self, function)


class Graph(Generic[State]):
    """To be called like the function: it does the same work and returns results that later calls leave alone.

    Waits for the device once, in the call that captures.
    """

    def __init__(self, graphs: Graphs[State], function: Callable[..., dict[str, Tensor]]) -> None:
        self.graphs, self.function = graphs, function
        self.inputs: list[Tensor] = []
        self.outputs: dict[str, Tensor] = {}
        self.graph: Any = None
        self.calls = 0

    def __call__(self, state: State, *inputs: Tensor | float) -> dict[str, Tensor]:
        if is_in_torch_dispatch_mode():  # whoever counts operators must see them
            return self.function(state, *inputs)
        work = self.graphs.work
        self._copy(state, work)
        self._fill(inputs)
        if self.graph is not None:
            self.graph.replay()
        elif self.calls < WARM_UP:
            self.outputs = self._on_the_side()
        else:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=self.graphs.pool, stream=self.graphs.stream):
                self.outputs = self.function(work, *self.inputs)
            self.graph.replay()
        self.calls += 1
        self._copy(work, state)
        return {name: value.clone() for name, value in self.outputs.items()}

    @torch.no_grad()
    def _copy(self, source: State, target: State) -> None:
        torch._foreach_copy_(list(self.graphs.tensors(target)), list(self.graphs.tensors(source)))

    def _fill(self, inputs: Sequence[Tensor | float]) -> None:
        if not self.inputs:
            number = torch.empty((), dtype=torch.float64, device=self.graphs.stream.device)
            self.inputs = [torch.empty_like(x if isinstance(x, Tensor) else number) for x in inputs]
        for buffer, given in zip(self.inputs, inputs, strict=True):
            if isinstance(given, Tensor):
                buffer.copy_(given)
            else:
                buffer.fill_(given)  # an argument of the kernel: no copy from the host

    def _on_the_side(self) -> dict[str, Tensor]:
        """A call as it is, on the stream that is to be captured: its handles and workspaces must be there by then."""
        side, current = self.graphs.stream, torch.cuda.current_stream(self.graphs.stream.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs = self.function(self.graphs.work, *self.inputs)
        current.wait_stream(side)
        return outputs
