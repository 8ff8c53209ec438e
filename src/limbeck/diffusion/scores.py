"""The two denoisers of score distillation: the frozen teacher, and the fake one that follows the generator.

| made by | fake score |
|---|---|
| :meth:`Scores.full` | a copy of the teacher, all weights learn: DMD, SiD |
| :meth:`Scores.lora` | the teacher itself with adapters, switched off for the teacher's answers: VSD, SwiftBrush |
| :meth:`Scores.switched` | the same with anybody's adapters, such as peft's |
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_tensors
from limbeck.diffusion.denoiser import Condition, Denoiser, Guided
from limbeck.diffusion.noise import NoiseSchedule
from limbeck.nn.lora import ATTENTION, LoRA
from limbeck.signals import Batch, Signals
from limbeck.sources.base import Source


class Scores:
    """A teacher, a fake score, and how to ask them.

    Args:
        teacher, fake: denoisers of one kind of prediction.
        weights: what of the fake score learns.
        schedule: of both. prediction: ``eps``, ``x0`` or ``v``. null: null condition, needed for guidance.
        frozen: the network whose weights that do not learn are the teacher's, for devices and checkpoints; a teacher in
            closed form has none.

    The teacher's weights are frozen by ``requires_grad``, never by ``no_grad``: some methods need its gradient in x.
    """

    def __init__(
        self,
        teacher: Denoiser,
        fake: Denoiser,
        weights: nn.Module,
        *,
        schedule: NoiseSchedule,
        prediction: str = "eps",
        null: Any = None,
        frozen: nn.Module | None = None,
    ) -> None:
        self.teacher, self.fake, self.weights = teacher, fake, weights
        self.schedule, self.prediction, self.null = schedule, prediction, null
        self.frozen = FrozenNetwork(frozen) if frozen is not None else None

    @classmethod
    def full(cls, teacher: Any, *, fake: nn.Module | None = None, **options: Any) -> Scores:
        """A fake score of its own: ``fake``, or a copy of the teacher. A closed-form teacher needs ``fake``."""
        own = copy.deepcopy(teacher) if fake is None else fake
        own.eval().requires_grad_(True)
        frozen = teacher.eval().requires_grad_(False) if isinstance(teacher, nn.Module) else None
        return cls(teacher, own, own, frozen=frozen, **options)

    @classmethod
    def lora(
        cls,
        network: nn.Module,
        *,
        targets: Sequence[str] = ATTENTION,
        rank: int = 8,
        alpha: float | None = None,
        denoiser: Callable[[nn.Module], Denoiser] | None = None,
        **options: Any,
    ) -> Scores:
        """Adapters of ours on the teacher; ``denoiser`` wraps networks with another signature."""
        adapters = LoRA(network.eval(), targets, rank=rank, alpha=alpha)
        call: Any = denoiser(network) if denoiser else network
        return cls.switched(call, adapters.off, adapters, frozen=network, **options)

    @classmethod
    def switched(
        cls, denoiser: Denoiser, off: Callable[[], AbstractContextManager[Any]], weights: nn.Module, **options: Any
    ) -> Scores:
        """One denoiser that is the teacher inside ``with off():`` and the fake score outside.

        ``weights``: the adapters, for instance ``nn.ParameterList`` of the network's trainable parameters.
        """

        def teacher(x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            with off():
                return denoiser(x, t, condition)

        return cls(teacher, denoiser, weights, **options)

    def eps_real(self, x: Tensor, t: Tensor, condition: Condition = None, scale: float = 1.0) -> Tensor:
        """The teacher's guided eps at the noised ``x``."""
        return self._ask(self.teacher, x, t, condition, scale, "eps")

    def eps_fake(self, x: Tensor, t: Tensor, condition: Condition = None, scale: float = 1.0) -> Tensor:
        """The fake score's guided eps."""
        return self._ask(self.fake, x, t, condition, scale, "eps")

    def x0_real(self, x: Tensor, t: Tensor, condition: Condition = None, scale: float = 1.0) -> Tensor:
        """The teacher's guided clean sample."""
        return self._ask(self.teacher, x, t, condition, scale, "x0")

    def x0_fake(self, x: Tensor, t: Tensor, condition: Condition = None, scale: float = 1.0) -> Tensor:
        """The fake score's guided clean sample."""
        return self._ask(self.fake, x, t, condition, scale, "x0")

    def _ask(self, denoiser: Denoiser, x: Tensor, t: Tensor, condition: Condition, scale: float, wanted: str) -> Tensor:
        output = Guided(denoiser, scale, self.null)(x, t, condition)
        return self.schedule.convert(output, x, t, self.prediction, wanted)


class FrozenNetwork(Source):
    """A network that is never trained or saved, of which a checkpoint keeps the fingerprint.

    Weights that learn (adapters inside the network) and those made later do not count.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.names = [name for name, weight in network.named_parameters() if not weight.requires_grad]

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        """Runs the network on the arguments in ``batch["input"]``; see :class:`~limbeck.sources.Live`."""
        with torch.no_grad():
            return {"logits": self.network(**batch["input"])}

    def fingerprint(self) -> str:
        weights = dict(self.network.named_parameters())
        return fingerprint_tensors({name: weights[name] for name in self.names})

    def to(self, device: torch.device | str) -> FrozenNetwork:
        self.network.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return [self.network]


def vsd(real: Tensor, fake: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """``weight (eps_real - eps_fake)``: variational score distillation, and the gradient of DMD.

    Zero where the generator's samples are the teacher's. The weight (sigma_t^2, say) broadcasts over samples.
    """
    return weight * (real - fake)


def sds(real: Tensor, noise: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """``weight (eps_real - eps)``: score distillation sampling; its fixed points are modes of the blurred teacher."""
    return weight * (real - noise)
