"""The last matrix of a language model, apart from the model: hidden states in, logits out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.signals import HeadLogits


@dataclass(frozen=True)
class OutputHead:
    """A language model's output head: a matrix, with what some families do to its product.

    Attributes:
        weight, bias, scale, cap: see :class:`~limbeck.signals.HeadLogits`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> OutputHead:
        """The head of a transformers causal model; its own tensors, not copies."""
        found = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(found, nn.Linear):
            given = f"{type(model).__name__} with {type(found).__name__} as its head"
            raise UserError("model", given, "a causal language model with one linear head")
        scale, cap = head_settings(model.config)
        return cls(found.weight, found.bias, scale, cap)

    def __call__(self, hidden: Tensor) -> HeadLogits:
        """Logits of hidden states ``[..., width]``, not multiplied out yet."""
        if hidden.shape[-1] != self.weight.shape[1]:
            raise UserError("hidden", f"states of width {hidden.shape[-1]}", f"{self.weight.shape[1]}, the head's")
        return HeadLogits(hidden, self.weight, self.bias, self.scale, self.cap)

    def map(self, function: Callable[[Tensor], Tensor]) -> OutputHead:
        """Apply ``function`` (a move, a detachment) to the tensors."""
        bias = None if self.bias is None else function(self.bias)
        return OutputHead(function(self.weight), bias, self.scale, self.cap)


def head_settings(config: Any) -> tuple[float, float | None]:
    """Scale and cap of the logits that a transformers configuration names.

    ``logit_scale`` (Cohere) and ``lm_head_multiplier`` (Falcon-H1) multiply, ``logits_scaling`` divides (Granite) but
    multiplies for HyperCLOVA X; ``final_logit_softcapping`` caps (Gemma). What another family may do is found out by
    :func:`limbeck.language.check_head`, which compares with the whole model.
    """
    config = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        scale *= float(value) if value is not None else 1.0
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        multiplies = str(config.model_type).startswith("hyperclovax")
        scale = scale * float(divisor) if multiplies else scale / float(divisor)
    cap = getattr(config, "final_logit_softcapping", None)
    return scale, None if cap is None else float(cap)
