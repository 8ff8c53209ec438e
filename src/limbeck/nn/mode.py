"""Look at a network and leave no trace: evaluation mode inside, each module's own mode after."""

from __future__ import annotations

from collections.abc import Iterator
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
