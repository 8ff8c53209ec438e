"""Small networks with everything that can go wrong on resume, their data, and a way to be cut off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, OptimizerSettings
from limbeck.objectives import KL, CrossEntropy, Objective

# Of a class name and not of an object: both ways of drawing must survive a resume.
_DATA = torch.Generator().manual_seed(0)
INPUT, TARGET = torch.randn(50, 8, generator=_DATA), torch.randint(0, 4, (50,), generator=_DATA)
BATCHES = 4


def network(seed: int = 0, width: int = 16) -> nn.Sequential:
    """Dropout draws numbers, BatchNorm has buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 4))


def loader(**options: Any) -> TensorLoader:
    """Four batches an epoch, the last of them short."""
    return TensorLoader({"input": INPUT, "target": TARGET, "id": torch.arange(50)}, 16, **{"seed": 3, **options})


def objective() -> Objective:
    return 0.5 * CrossEntropy() + 0.5 * KL(temperature=2.0)


def distiller(teacher: Any = None, **options: Any) -> Distiller:
    """``teacher`` may be a function of the student."""
    student = network(1)
    if callable(teacher) and not isinstance(teacher, nn.Module):
        teacher = teacher(student)
    settings = OptimizerSettings(lr=0.05, warmup=0.1)
    return Distiller(student, options.pop("objective", objective()), teacher, optimizer=settings, **options)


def accuracy(module: Any) -> dict[str, float]:
    """A validation that draws random numbers, as some do."""
    torch.rand(3)
    student = module.student if hasattr(module, "student") else next(iter(module.peers.values()))
    return {"accuracy": (student(INPUT).argmax(-1) == TARGET).float().mean().item()}


class Cut(Exception):
    """The power is gone."""


class Die(Callback):
    """Ends the run at a step, at the worst of moments: after a checkpoint may have been written or not."""

    def __init__(self, step: int, hook: str = "on_train_batch_start") -> None:
        self.step = step
        setattr(self, hook, self._die)

    def _die(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if pl_module.steps_done == self.step:
            raise Cut


class DieAfter(Callback):
    """Ends everything after so many steps, of however many trainings."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_train_batch_start(self, *args: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cut


def states(module: LightningModule, source: Any = None) -> dict[str, Tensor]:
    """All that must be equal: weights, buffers, and a changing teacher's."""
    found = dict(module.state_dict())
    source = source if source is not None else getattr(module, "teacher", None)
    if source is not None:
        found |= {f"teacher.{key}": value for key, value in _flat(source.state_dict())}
    return found


def _flat(value: Mapping[str, Any], path: str = "") -> list[tuple[str, Tensor]]:
    rows: list[tuple[str, Tensor]] = []
    for key, item in value.items():
        rows += _flat(item, f"{path}{key}.") if isinstance(item, Mapping) else [(f"{path}{key}", item)]
    return rows


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
