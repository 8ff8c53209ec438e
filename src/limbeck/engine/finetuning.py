"""Fine-tuning a pre-trained encoder: the evaluator of self-supervised and feature distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from limbeck.data.loaders import Samples, TensorLoader
from limbeck.engine.distiller import Distiller
from limbeck.engine.fit import History, fit
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.errors import UserError
from limbeck.objectives import CrossEntropy, Objective
from limbeck.sources import Source
from limbeck.taps import blocks

_USUAL = OptimizerSettings(weight_decay=0.05, warmup=0.1)


@dataclass(frozen=True)
class FineTuning:
    """How a classifier around a pre-trained encoder is trained on labels; the last epoch counts.

    Attributes:
        epochs, batch_size: length.
        optimizer: its ``rates`` are made here.
        layer_decay: factor of the learning rate from each block to the one before it; 1 for none. See
            :func:`layer_rates`.
        transform: augmentation; see :class:`~limbeck.data.loaders.TensorLoader`.
    """

    epochs: int
    batch_size: int = 64
    optimizer: OptimizerSettings = _USUAL
    layer_decay: float = 1.0
    transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None

    def __call__(
        self,
        classifier: nn.Module,
        samples: Samples,
        *,
        objective: Objective | None = None,
        teacher: Source | nn.Module | None = None,
        seed: int = 0,
        **options: Any,
    ) -> History:
        """Train ``classifier`` in place; it comes back in eval mode.

        Args:
            objective: cross-entropy by default. teacher: of an objective that needs one.
            seed: of order and augmentation.
            options: of :func:`~limbeck.engine.fit.fit`.
        """
        settings = self.optimizer
        if self.layer_decay != 1:
            rates = layer_rates(classifier, self.layer_decay, prefix="student.")
            settings = replace(settings, rates=(*settings.rates, *rates))
        distiller = Distiller(classifier, objective or CrossEntropy(), teacher, optimizer=settings)
        size = min(self.batch_size, len(samples.id))
        loader = TensorLoader(samples, size, seed=seed, transform=self.transform, drop_last=True)
        history = fit(distiller, loader, epochs=self.epochs, seed=seed, **options)
        distiller.finish()
        return history


def layer_rates(model: nn.Module, decay: float, *, prefix: str = "") -> tuple[tuple[str, float], ...]:
    """Learning-rate factors that fall with the distance from the head, for ``OptimizerSettings.rates``.

    Of a main stack of n blocks, block i (from 0) learns at ``decay^(n - i)``; what stands before the stack (embeddings)
    at ``decay^(n + 1)``; what stands behind it (norm, head) at 1. MAE's rule, after ELECTRA and BEiT.

    Args:
        prefix: put before every name, ``student.`` for a distiller.
    """
    if not 0 < decay <= 1:
        raise UserError("layer_decay", decay, "above 0, at most 1")
    path, stack = blocks(model)
    inside = f"{path}." if path else ""
    names = [name for name, _ in model.named_parameters()]
    first = next((place for place, name in enumerate(names) if name.startswith(inside)), 0)
    rates = [(f"{prefix}{inside}{key}.*", decay ** (len(stack) - place)) for place, key in enumerate(stack._modules)]
    return (*rates, *((prefix + name, decay ** (len(stack) + 1)) for name in names[:first]))
