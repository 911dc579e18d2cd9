"""Matching the trajectories of experts, for MTT and DATM.

The loss and the student's steps come from Cazenavette et al., "Dataset Distillation by Matching Training Trajectories",
CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.errors import UserError
from benchmarks.task import Task, generator_for
from methods._experts import Experts
from methods._optim import Optimised
from methods._unroll import minibatches, unroll
from methods.base import Store, check_ranges


@dataclass(frozen=True)
class TrajectoryConfig:
    """Hyper-parameters that MTT and DATM have in common, by default those of MTT's two scripts."""

    syn_steps: int = 20
    """Inner steps N of the student on the synthetic images."""
    expert_epochs: int = 3
    """Epochs M that the expert is ahead: the student must reach θ*_{t+M} from θ*_t."""
    max_start_epoch: int = 25
    """Every start t is below it."""
    batch_syn: int | None = None
    """Synthetic images per inner step; None: all of them."""
    lr_img: float = 1000.0
    """Step size of the synthetic images."""
    lr_lr: float = 1e-5
    """Step size of the student's step size α."""
    lr_init: float = 0.01
    """Initial α."""
    momentum: float = 0.5
    """Momentum of the updates of images and α."""
    num_experts: int = 100
    """Expert trajectories."""
    train_epochs: int = 50
    """Epochs of an expert; a snapshot is taken after each."""
    lr_expert: float = 0.01
    """Step size of the experts' SGD, which has neither momentum nor weight decay."""
    batch_train: int = 256
    """Real images per step of an expert."""
    steps_per_epoch: int | None = None
    """Steps of an expert that count as an epoch; None: one pass over the real images. Not the papers': short budgets
    need experts that cost the same for every data set."""
    rematerialize: bool = False
    """Compute the activations of an inner step again when the gradient comes back to it, instead of keeping those of
    all N. The gradient is the same, and takes more time. Only the parameters of every step are kept, on the host."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range, and for experts that are too short to start and end on."""
        check_ranges(self, from_zero=("min_start_epoch",))
        needed = self.max_start_epoch - 1 + self.expert_epochs
        if needed > self.train_epochs:
            raise UserError(
                f"{type(self).__name__.removesuffix('Config').lower()}: max_start_epoch {self.max_start_epoch} and "
                f"expert_epochs {self.expert_epochs} need experts of {needed} epochs, but train_epochs is "
                f"{self.train_epochs}; raise it or lower the others"
            )


def matching_loss(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """‖θ̂_{t+N} − θ*_{t+M}‖² / ‖θ*_t − θ*_{t+M}‖² (equation 2 of MTT) of parameter vectors (P,), 0-d."""
    return (student - target).square().sum() / (start - target).square().sum()


class Trajectories(Optimised):
    """Synthetic images, and the step size of a student that follows ``experts`` on them."""

    experts: Experts
    config: TrajectoryConfig

    def __init__(self, task: Task, config: TrajectoryConfig, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.lr = torch.tensor(config.lr_init, dtype=task.dtype, device=task.device)
        self.student = task.network(generator_for("mtt student"))  # its structure; the parameters come from experts

    def prepare(self, store: Store) -> None:
        """Train the experts that ``store`` does not hold."""
        self.experts.prepare(store, self.config.num_experts)
        self.store = store

    def segment(self, expert: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Parameters θ*_t and θ*_{t+M} (P,) of an expert, where ``epoch`` is t."""
        epochs = (epoch, epoch + self.config.expert_epochs)
        snapshots = (self.experts.snapshot(self.store, expert, at) for at in epochs)
        start, target = (snapshot.to(self.task.device, non_blocking=True) for snapshot in snapshots)
        return start, target

    def student_after(self, start: Tensor, images: Tensor, labels: Tensor, lr: Tensor) -> Tensor:
        """Parameters (P,) that N steps lead to from ``start``, differentiable in images, labels and ``lr``.

        Every step sees a minibatch of the images, augmented one by one. ``labels`` are class indices (n,) or
        probabilities (n, C).
        """
        config, task = self.config, self.task
        indices = minibatches(len(images), config.batch_syn or len(images), config.syn_steps, task.generator)
        size = (images.shape[-2], images.shape[-1])
        draws = [draw_dsa(size, len(index), task.generator, flip=task.flip) for index in indices]
        indices = [index.to(task.device, non_blocking=True) for index in indices]

        def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            (op, parameters), index = draws[step], indices[step]
            return apply_dsa(op, images[index], parameters), labels[index]

        student, _ = unroll(
            self.student, start, batch, config.syn_steps, [images, labels], lr, rematerialize=config.rematerialize
        )
        return student
