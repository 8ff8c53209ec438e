"""Other tensors in the place of a network's own weights, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError

BUFFERS = ("update", "keep")

_Slot = tuple[dict[str, Any], str]


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor], *, buffers: str = "update") -> Iterator[nn.Module]:
    """Let ``model`` work with ``tensors`` instead of its own parameters (or buffers) of those names.

    The tensors may hang on the graph of whatever they were made of (a quantiser's input, an inner step's weights), and
    may have other shapes than what they stand for. A backward pass after the block is fine, since the graph holds what
    the forward pass used. The own weights are back after the block, also after an exception, untouched, and so are
    their gradients.

    Args:
        tensors: name -> tensor, named as in ``named_parameters`` and ``named_buffers``. A tied weight is replaced
            under all of its names, and may be given under any of them.
        buffers: ``update`` leaves the network's buffers as the block leaves them (BatchNorm statistics of the weights
            that it used); ``keep`` puts them back too.

    A block is one thread's: another that runs the network meanwhile sees the same tensors. A network that recomputes
    its activations in the backward pass (gradient checkpointing) must run that pass inside the block.

    Raises:
        UserError: a name that the network does not have, or an unknown policy.
    """
    if buffers not in BUFFERS:
        raise UserError("buffers", buffers, BUFFERS)
    slots = _slots(model)
    unknown = next((name for name in tensors if name not in slots), None)
    if unknown is not None:
        raise UserError("weight to substitute", unknown, slots)
    # A tied weight has several places, found by its identity while it still is in them.
    places: dict[int, list[_Slot]] = {}
    for holder, key in slots.values():
        places.setdefault(id(holder[key]), []).append((holder, key))
    changes = []
    for name, tensor in tensors.items():
        holder, key = slots[name]
        changes += [(place, holder[key], tensor) for place in places[id(holder[key])]]
    statistics = [(value, value.detach().clone()) for value in model.buffers()] if buffers == "keep" else []
    try:
        for (holder, key), _, tensor in changes:
            holder[key] = tensor
        yield model
    finally:
        for (holder, key), own, _ in changes:
            holder[key] = own
        with torch.no_grad():
            for value, before in statistics:
                value.copy_(before)


def _slots(model: nn.Module) -> dict[str, _Slot]:
    return {
        f"{path}.{key}" if path else key: (values, key)
        for path, module in model.named_modules(remove_duplicate=False)
        for values in (module._parameters, module._buffers)
        for key, value in values.items()
        if value is not None
    }


class WeightView(nn.Module):
    """What a forward pass sees in the place of a network's own weights: quantised, masked, perturbed ones.

    Give one to a :class:`~limbeck.engine.Distiller` as ``weights``. It is a module so that what it learns itself
    (quantisation points, mask scores) is trained, saved and resumed with the student.

    Attributes:
        trains_statistics: BatchNorm statistics follow the weights of the view even where the own weights are frozen.
    """

    trains_statistics = False

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Name -> the tensor that stands for that parameter, on the graph of the parameter and of the view's own."""
        raise UserError("weight view", type(self).__name__, "a subclass that defines tensors()")

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Give ``model`` the tensors of the view for good."""
        parameters = dict(model.named_parameters())
        for name, tensor in self.tensors(model).items():
            parameters[name].copy_(tensor)
