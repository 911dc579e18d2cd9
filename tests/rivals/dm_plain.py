"""DM as one would port it from the paper, to compare ``methods/dm.py`` with.

Every real batch passes in one piece, and the sum over the classes is differentiated in the end. The draws are those of
ours, in the same order, so a step gives the same images within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from _rival import Rival, convnet, features
from torch import Tensor

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.task import Task
from methods.dm import DM


class DMPlain(Rival):
    """Algorithm 1 of Zhao and Bilen, WACV 2023."""

    Config = DM.Config
    PAPER = DM.PAPER
    BUDGETS = DM.BUDGETS
    PROTOCOL = DM.PROTOCOL
    KNOWN = ("lr_img", "momentum", "batch_real")

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.rows = task.rows_of_classes()
        self.optimiser = torch.optim.SGD([self.images], lr=config.lr_img, momentum=config.momentum)

    def step(self) -> dict[str, Tensor]:
        task = self.task
        network = convnet(task)
        loss = torch.zeros((), dtype=task.dtype, device=task.device)
        for rows, synthetic in zip(self.rows, torch.split(self.images, task.ipc), strict=True):
            real = task.draw(rows, self.config.batch_real)
            op, draws = draw_dsa((real.shape[2], real.shape[3]), 1, task.generator, flip=task.flip)
            target = features(network, apply_dsa(op, real, draws)).mean(0)
            loss = loss + (target - features(network, apply_dsa(op, synthetic, draws)).mean(0)).square().sum()
        self.optimiser.zero_grad()
        (self.images.grad,) = torch.autograd.grad(loss, self.images)
        self.optimiser.step()
        return {"distance": loss.detach()}
