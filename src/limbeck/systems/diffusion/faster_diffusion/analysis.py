"""How much the features of a UNet's blocks change from step to step: the observation behind the method.

For every block b and step o, with f_b the block's output (averages are over samples and elements):

    change_b(o) = mean (f_b(o) - f_b(o-1))^2 / mean over the steps of mean f_b^2
    norm_b(o)   = Frobenius norm of f_b(o), per sample

The change is per block relative to the block's own power, so that blocks of any scale compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.adapters import kind_of
from limbeck.diffusion.denoiser import Condition, Guided
from limbeck.diffusion.samplers import Sampler
from limbeck.diffusion.unet import SmallUNet
from limbeck.errors import UserError
from limbeck.taps import Taps


@dataclass(frozen=True)
class FeatureChange:
    """``change`` of every block at the steps 1 ... S - 1, and ``norm`` at the steps 0 ... S - 1."""

    change: Mapping[str, list[float]]
    norm: Mapping[str, list[float]]

    def mean(self, *blocks: str) -> float:
        """Mean change over blocks and steps."""
        values = [value for block in blocks for value in self.change[block]]
        return sum(values) / len(values)


def block_paths(network: nn.Module) -> dict[str, str]:
    """Where the blocks' outputs are: ``conv_in``, ``down.I``, ``middle``, ``up.I``; I counts from the input's side.

    Known are :class:`~limbeck.diffusion.unet.SmallUNet` and the UNets of diffusers; for others name the paths yourself.
    """
    if isinstance(network, SmallUNet):
        levels = range(len(network.down))
        blocks = {name: {i: _last_block(getattr(network, name)[i]) for i in levels} for name in ("down", "up")}
        paths = {f"{name}.{i}": f"{name}.{i}.{blocks[name][i]}" for name in ("down", "up") for i in levels}
        return {"conv_in": "conv_in", **paths, "middle": "middle"}
    if kind_of(network) is None:
        raise UserError("network", type(network).__name__, "SmallUNet, a UNet of diffusers, or paths of your own")
    downs, ups = len(network.down_blocks), len(network.up_blocks)  # type: ignore[arg-type]
    return {
        "conv_in": "conv_in",
        **{f"down.{i}": f"down_blocks.{i}" for i in range(downs)},
        "middle": "mid_block",
        # Diffusers numbers its up blocks from the middle on.
        **{f"up.{ups - 1 - i}": f"up_blocks.{i}" for i in range(ups)},
    }


@torch.no_grad()
def feature_change(
    network: nn.Module,
    guided: Guided,
    sampler: Sampler,
    noise: Tensor,
    condition: Condition = None,
    *,
    paths: Mapping[str, str] | None = None,
) -> FeatureChange:
    """Run the full sampler once and measure every block.

    Args:
        network: the module whose blocks are read; ``guided`` calls it.
        paths: block -> module path; :func:`block_paths` by default.
    """
    taps = Taps(network, dict(paths or block_paths(network)))
    change: dict[str, list[float]] = {}
    power: dict[str, list[float]] = {}
    norm: dict[str, list[float]] = {}
    before: dict[str, Tensor] = {}
    state, x = sampler.begin(), sampler.start(noise)
    try:
        for index in range(len(sampler)):
            with taps.capture() as seen:
                output = guided(sampler.model_input(state, x, index), sampler.time(index).to(x.device), condition)
            for name, value in seen.items():
                if name in before:
                    change.setdefault(name, []).append(float((value - before[name]).square().mean()))
                power.setdefault(name, []).append(float(value.square().mean()))
                norm.setdefault(name, []).append(float(value.flatten(1).norm(dim=1).mean()))
            before = dict(seen)
            x = sampler.step(state, x, output, index)
    finally:
        taps.close()
    means = {name: sum(values) / len(values) for name, values in power.items()}
    return FeatureChange({name: [one / means[name] for one in values] for name, values in change.items()}, norm)


def _last_block(level: Any) -> int:
    """The last residual block of a level, before what halves or doubles the map."""
    return max(place for place, part in enumerate(level) if hasattr(part, "conv2"))
