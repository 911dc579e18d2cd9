"""The events of a distillation and its images in the form that TensorBoard reads. The extra ``tensorboard`` brings the
package that writes it.

Everything is written in the calling thread, which is not measured meanwhile: the usual `SummaryWriter` has a thread of
its own, which would work while steps are timed.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from benchmarks.datasets import Benchmark
from harness.records.artifact import picture
from methods.base import Synthetic

SHOWN = 100
"""About so many images are shown, of each class as many."""


class TensorBoard:
    """One process's part of what ``folder`` tells about a distillation."""

    def __init__(self, folder: Path, benchmark: Benchmark, done: int) -> None:
        """``done``: steps that an earlier process took; what it wrote of later ones is void, as they are taken again.

        Raises OSError where ``folder`` cannot be written.
        """
        if done == 0:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self._benchmark = benchmark
        self._writer = EventsWriter(str(folder / "events"), f".{done}")  # unlike that of an earlier process
        self._write(done + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, event: Mapping[str, Any]) -> None:
        """Write the numbers of ``event``, as `harness.records.events` has them."""
        values = {"seconds_per_step": event["step_seconds"], "memory_bytes": event["memory_bytes"], **event["losses"]}
        known = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        self._write(event["step"], summary=Summary(value=known))

    def images(self, synthetic: Synthetic, step: int) -> None:
        """Write a picture of ``synthetic`` in natural colours."""
        task, preprocess = self._benchmark.task, self._benchmark.preprocess.to("cpu", synthetic.images.dtype)
        images = synthetic.images.detach().cpu()
        by_class = images.reshape(len(task.classes), -1, *images.shape[1:])
        images = by_class[:, : max(1, SHOWN // len(task.classes))].flatten(0, 1)
        shown = picture(preprocess.inverse(images).clamp(0, 1), self._benchmark.class_names, task.classes)
        content = io.BytesIO()
        shown.save(content, format="PNG")
        image = Summary.Image(height=shown.height, width=shown.width, encoded_image_string=content.getvalue())
        self._write(step, summary=Summary(value=[Summary.Value(tag="images", image=image)]))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()
