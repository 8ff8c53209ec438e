"""Signals: what a network says about one batch, as a plain mapping of names to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError


@dataclass(frozen=True)
class SparseLogits:
    """The ``k`` largest log-probabilities of every row, with the exact mass of all the others.

    Attributes:
        values: log-probabilities, ``[..., k]``, falling.
        indices: their classes, int64 ``[..., k]``.
        rest: log of the probability that the other ``size - k`` classes share, ``[...]``.
        size: number of classes.

    Together they are a proper distribution over ``k + 1`` outcomes, so a divergence on them is a divergence and
    never a truncated sum.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor
    size: int

    @classmethod
    def from_dense(cls, logits: Tensor, k: int) -> SparseLogits:
        """Keep the ``k`` largest of ``logits`` ``[..., size]``."""
        size = logits.shape[-1]
        if not 1 <= k <= size:
            raise UserError("k", k, f"1 to the number of classes, {size}")
        precise = logits if logits.dtype == torch.float64 else logits.float()
        log_probs = precise.log_softmax(dim=-1)
        values, indices = log_probs.topk(k, dim=-1)
        # The rest is summed from its own members: 1 - sum(top k) would cancel to noise for a confident teacher.
        others = log_probs.scatter(-1, indices, -torch.inf)
        return cls(values, indices, others.logsumexp(dim=-1), size)

    def to_dense(self) -> Tensor:
        """Log-probabilities ``[..., size]`` with the rest mass spread evenly over the classes that were not kept."""
        spread = self.rest - torch.log(torch.tensor(float(max(self.size - self.values.shape[-1], 1))))
        dense = spread.unsqueeze(-1).expand(*spread.shape, self.size).clone()
        return dense.scatter(-1, self.indices, self.values)

    def top(self, k: int) -> SparseLogits:
        """The ``k`` largest of those that are kept, with the others in the rest."""
        kept, order = self.values.topk(k, dim=-1)
        indices = self.indices.gather(-1, order)
        if k == self.values.shape[-1]:
            return SparseLogits(kept, indices, self.rest, self.size)
        dropped = self.values.scatter(-1, order, -torch.inf).logsumexp(-1)
        return SparseLogits(kept, indices, torch.logaddexp(self.rest, dropped), self.size)

    def map(self, function: Callable[[Tensor], Tensor]) -> SparseLogits:
        """Apply ``function`` (an index, a move) to the three tensors."""
        return SparseLogits(function(self.values), function(self.indices), function(self.rest), self.size)


@dataclass(frozen=True)
class HeadLogits:
    """Logits that are not multiplied out: the hidden states that a linear head is given, and the head.

    ``logits = cap(scale * (hidden W^T + b))``, ``cap(z) = c tanh(z / c)`` (Gemma) or the identity.

    Losses over a large vocabulary work on this form a few rows at a time, so that the largest tensor of a language
    model's training never exists whole; :meth:`to_dense` makes it for everything else.

    Attributes:
        hidden: ``[..., width]``, behind the last normalisation: what the head's matrix is multiplied with.
        weight, bias: ``[size, width]`` and ``[size]`` or None.
        scale: factor of the logits (Cohere; Granite's divisor as its inverse).
        cap: c, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the logits."""
        return torch.Size((*self.hidden.shape[:-1], len(self.weight)))

    def finish(self, product: Tensor) -> Tensor:
        """Scale and cap ``hidden W^T + b``."""
        product = product if self.scale == 1 else product * self.scale
        return product if self.cap is None else torch.tanh(product / self.cap) * self.cap

    def to_dense(self) -> Tensor:
        """The logits ``[..., size]``."""
        return self.finish(functional.linear(self.hidden, self.weight, self.bias))

    def map(self, function: Callable[[Tensor], Tensor]) -> HeadLogits:
        """Apply ``function`` (an index of rows) to the hidden states; the head has no rows of the batch."""
        return replace(self, hidden=function(self.hidden))

    def map_all(self, function: Callable[[Tensor], Tensor]) -> HeadLogits:
        """Apply ``function`` (a move, a detachment) to hidden states and head."""
        bias = None if self.bias is None else function(self.bias)
        return replace(self, hidden=function(self.hidden), weight=function(self.weight), bias=bias)


Signals = Mapping[str, Tensor | SparseLogits | HeadLogits]
#: Signal of a source that cannot answer every sample, bool ``[B]``: objectives do not count the others.
TOLD = "told"
Batch = Mapping[str, Any]
Forward = Callable[[nn.Module, Batch], dict[str, Tensor]]


def run_network(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run an unmodified network on ``batch["input"]`` and name what it returns.

    A tensor input is passed as it is, a mapping as keyword arguments. A bare tensor output is called ``logits``; a
    mapping (a transformers ``ModelOutput``) keeps the names of its tensors; of a tuple the first tensor counts.
    """
    check_batch(batch)
    given = batch["input"]
    output = model(**given) if isinstance(given, Mapping) else model(given)
    return name_output(output)


def check_batch(batch: Any) -> None:
    """Refuse what is not a mapping with ``input``, such as the pairs that many data sets give."""
    if not isinstance(batch, Mapping):
        raise UserError("batch", type(batch).__name__, "a mapping with input, usually target, and id")
    if "input" not in batch:
        raise UserError("batch", ", ".join(map(str, batch)), "a mapping with input, usually target, and id")


def name_output(output: Any) -> dict[str, Tensor]:
    """Signals of whatever a network returned; see :func:`run_network`."""
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, Mapping):
        return {name: value for name, value in output.items() if isinstance(value, Tensor)}
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return {"logits": output[0]}
    raise UserError(
        "network output",
        type(output).__name__,
        "a tensor, a mapping of tensors, or a tuple that begins with a tensor",
        "pass forward= to read another kind of output",
    )


def pick(signals: Signals, names: Iterable[str], role: str) -> dict[str, Any]:
    """The named signals, with :data:`TOLD` if it is there, or an error that lists what the ``role`` (student, teacher)
    offers."""
    chosen = {TOLD: signals[TOLD]} if TOLD in signals else {}
    for name in names:
        if name not in signals:
            raise UserError(
                f"{role} signal", name, sorted(signals), "add a tap of that name, or rename the objective's need"
            )
        chosen[name] = signals[name]
    return chosen


def dense(signals: Signals, name: str) -> Tensor:
    """A signal as a tensor; top-k logits are refused, since most losses would read them as whole ones."""
    value = signals[name]
    if isinstance(value, HeadLogits):
        return value.to_dense()
    if isinstance(value, SparseLogits):
        raise UserError(f"signal {name}", f"top-{value.values.shape[-1]} of {value.size}", "a dense signal")
    return value


def dense_or_sparse(signals: Signals, name: str) -> Tensor | SparseLogits:
    """A signal for a loss that takes whole logits or the largest ones; a head is multiplied out."""
    value = signals[name]
    return value.to_dense() if isinstance(value, HeadLogits) else value


def detach(signals: Signals) -> dict[str, Any]:
    """The same signals without their graph."""
    return {name: _detached(value) for name, value in signals.items()}


def _detached(value: Tensor | SparseLogits | HeadLogits) -> Tensor | SparseLogits | HeadLogits:
    if isinstance(value, HeadLogits):
        return value.map_all(Tensor.detach)
    return value.map(Tensor.detach) if isinstance(value, SparseLogits) else value.detach()


def move(value: Any, device: torch.device | str) -> Any:
    """Move the tensors of a nested mapping, list or signal to ``device``; leave everything else."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, SparseLogits):
        return value.map(lambda tensor: tensor.to(device, non_blocking=True))
    if isinstance(value, HeadLogits):
        return value.map_all(lambda tensor: tensor.to(device, non_blocking=True))
    if isinstance(value, Mapping):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        moved = [move(item, device) for item in value]
        # A named tuple takes its fields one by one.
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value


def batch_length(batch: Batch) -> int:
    """Number of samples of a batch, from its ids."""
    return len(batch["id"])
