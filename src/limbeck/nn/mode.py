"""Look at a network and leave no trace: evaluation mode inside, each module's own mode after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put ``networks`` in evaluation mode, and give every submodule its own mode back, also after an error.

    A plain ``network.train()`` afterwards would wake parts that were frozen in evaluation mode on purpose.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` and encoder layers off their fused path, which no tracer looks into."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Weights are constants for what is computed inside: the gradient goes through a network and not into it.

    Unlike ``torch.no_grad`` this keeps the way to the network's input. What was trainable is so again afterwards.
    """
    woken = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in woken:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in woken:
            parameter.requires_grad_(True)
