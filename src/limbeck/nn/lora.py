"""LoRA: low-rank changes of a network's layers that can be switched off, so that one network is two.

    y = layer(x) + (alpha / rank) * up(down(x)),   up = 0 at the start          (Hu et al., 2021)

The network itself is not changed: the factors live in the :class:`LoRA` object and reach the layers through hooks.
So its ``state_dict`` keeps its names, the factors alone are what an optimiser and a checkpoint see, and with the
adapters off the output is that of the network, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.nn.transfer import shadow_of

ATTENTION = ("to_q", "to_v")


class LoRA(nn.Module):
    """Adapters on some layers of a network; they are on when made.

    Args:
        network: any; its weights are frozen here. It is no part of this module.
        targets: last names of layers (``to_q``), or patterns over whole paths (``*.conv1``). Linear and Conv2d layers.
        rank: of the factors. alpha: the factors' product is scaled by ``alpha / rank``; the rank by default.

    Raises:
        UserError: a target that matches no layer or only layers of another kind.
    """

    def __init__(
        self, network: nn.Module, targets: Sequence[str] = ATTENTION, *, rank: int = 8, alpha: float | None = None
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError("rank", rank, "1 or more")
        self.scale, self.enabled = (rank if alpha is None else alpha) / rank, True
        network.requires_grad_(False)
        self.paths = _matching(network, targets)
        modules = dict(network.named_modules())
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        self._hooks = []
        for place, path in enumerate(self.paths):
            layer: Any = modules[path]
            weight = layer.weight
            kernel = weight.shape[1:]
            self.down.append(nn.Parameter(torch.empty(rank, *kernel, dtype=weight.dtype, device=weight.device)))
            self.up.append(nn.Parameter(weight.new_zeros(len(weight), rank)))
            nn.init.kaiming_uniform_(self.down[-1], a=math.sqrt(5))
            self._hooks.append(layer.register_forward_hook(self._hook(place)))
        # Held where nn.Module does not look.
        self._network = (network,)

    @property
    def network(self) -> nn.Module:
        """The network that the adapters are on."""
        return self._network[0]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the network is as it was without adapters; afterwards they are as before."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def remove(self) -> None:
        """Take the adapters off the network for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the network with the adapters added to its weights; it has no hooks of ours."""
        merged = shadow_of(self.network)
        own = {hook.id for hook in self._hooks}
        for module in merged.modules():
            for key in own & set(module._forward_hooks):
                del module._forward_hooks[key]
        layers = dict(merged.named_modules())
        for path, down, up in zip(self.paths, self.down, self.up, strict=True):
            weight = layers[path].weight
            weight.add_(self.scale * (up @ down.flatten(1)).view_as(weight))
        return merged

    def _hook(self, place: int) -> Any:
        def add(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            down, up = self.down[place], self.up[place]
            if isinstance(layer, nn.Conv2d):
                inner = functional.conv2d(given[0], down, None, layer.stride, layer.padding, layer.dilation)
                return output + self.scale * functional.conv2d(inner, up[..., None, None])
            return output + self.scale * functional.linear(functional.linear(given[0], down), up)

        return add

    def __deepcopy__(self, memo: dict[int, Any]) -> LoRA:
        raise UserError("LoRA", "a copy", "merged(), or a new LoRA on a copy of the network")

    def extra_repr(self) -> str:
        return f"layers={len(self.paths)}, scale={self.scale:g}"


def _matching(network: nn.Module, targets: Sequence[str]) -> list[str]:
    able = {path: module for path, module in network.named_modules() if _able(module)}
    found: list[str] = []
    for target in targets:
        fits = [path for path in able if path.rpartition(".")[2] == target or fnmatchcase(path, target)]
        if not fits:
            known = sorted({path.rpartition(".")[2] for path in able})
            raise UserError("targets", target, known, "linear and ungrouped convolution layers")
        found += [path for path in fits if path not in found]
    return found


def _able(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)
