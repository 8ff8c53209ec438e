"""The two halves of diffusers' UNets, as they are: no weight, class or object of theirs is changed.

Half a forward pass is made by running the class's own ``forward`` on a shallow copy of the network whose other half
is replaced by parts that record or replay. So every option of the class (masks, class labels, added conditions,
ControlNet residuals, LoRA, FreeU) works as in the whole network, and a new version of the library keeps working as
long as its parts have their names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.split import Encoded
from limbeck.errors import UserError

KINDS = ("UNet2DModel", "UNet2DConditionModel", "UNet3DConditionModel")
#: Arguments that act on the encoder's side alone; what they add is in the skips.
ENCODER_ONLY = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


def kind_of(network: Any) -> str | None:
    """Which of :data:`KINDS` the network is, or None. Does not import diffusers."""
    for parent in type(network).__mro__:
        if parent.__module__.startswith("diffusers.") and parent.__name__ in KINDS:
            return parent.__name__
    return None


def arguments(kind: str, condition: Any) -> dict[str, Any]:
    """Keyword arguments of ``forward`` that a condition stands for: a tensor is the class labels or text embeddings."""
    if isinstance(condition, Mapping):
        return dict(condition)
    if kind == "UNet2DModel":
        return {} if condition is None else {"class_labels": condition}
    if condition is None:
        raise UserError("condition", None, f"the text embeddings that {kind} needs")
    return {"encoder_hidden_states": condition}


class SplitDiffusers:
    """A UNet of diffusers as a :class:`~limbeck.diffusion.split.SplitUNet`.

    Args:
        network: a ``UNet2DModel``, ``UNet2DConditionModel`` or ``UNet3DConditionModel``. It stays usable as it is.

    Raises:
        UserError: blocks with a second chain of skips (``SkipDownBlock2D``); a forward method that something (device
            offloading) has replaced on the object.
    """

    def __init__(self, network: nn.Module) -> None:
        kind = kind_of(network)
        if kind is None:
            raise UserError("network", type(network).__name__, KINDS)
        if any(hasattr(block, "skip_conv") for block in (*network.down_blocks, *network.up_blocks)):  # type: ignore[misc]
            raise UserError("network", "blocks with a second chain of skips", "ordinary down and up blocks")
        if "forward" in vars(network):
            raise UserError("network", f"a {kind} whose forward was replaced", "one without offloading hooks")
        self.network, self.kind = network, kind

    def encode(self, x: Tensor, t: Tensor, condition: Any = None) -> Encoded:
        """Run everything before the up blocks. ``condition``: see :func:`arguments`."""
        recorder = _Recorder(sum(len(block.resnets) for block in self.network.up_blocks))  # type: ignore[union-attr,misc,arg-type]
        shell = _shell(
            self.network,
            up_blocks=nn.ModuleList([recorder]),
            conv_norm_out=nn.Identity(),
            conv_act=nn.Identity(),
            conv_out=nn.Identity(),
        )
        type(self.network).forward(shell, x, t, **arguments(self.kind, condition), return_dict=False)
        found = Encoded(recorder.hidden, recorder.skips)
        if self.kind != "UNet3DConditionModel":
            return found
        frames = (-1, x.shape[2])
        return Encoded(found.hidden.unflatten(0, frames), tuple(skip.unflatten(0, frames) for skip in found.skips))

    def decode(self, encoded: Encoded, t: Tensor, condition: Any = None) -> Tensor:
        """Run the up blocks with the embedding of ``t``."""
        given = {k: value for k, value in arguments(self.kind, condition).items() if k not in ENCODER_ONLY}
        first = encoded.skips[0]
        frames: tuple[int, ...] = ()
        if self.kind == "UNet3DConditionModel":
            frames = (first.shape[1],)
            encoded = Encoded(encoded.hidden.flatten(0, 1), tuple(skip.flatten(0, 1) for skip in encoded.skips))
        # The sample itself is not read any more, but forward takes batch size and resolution from it.
        channels = int(self.network.config.in_channels)  # type: ignore[union-attr,arg-type]
        stand_in = first.new_zeros(()).expand(len(first), channels, *frames, *first.shape[-2:])
        replayed: dict[str, nn.Module | None] = {
            "conv_in": _Given(encoded.skips[0]),
            "down_blocks": nn.ModuleList([_Given((encoded.hidden, encoded.skips[1:]))]),
            "mid_block": None,
        }
        if frames:
            replayed["transformer_in"] = _Given((encoded.skips[0],))
        shell = _shell(self.network, **replayed)
        made: Tensor = type(self.network).forward(shell, stand_in, t, **given, return_dict=False)[0]  # type: ignore[operator]
        return made

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.decode(self.encode(x, t, condition), t, condition)


class _Recorder(nn.Module):
    """Stands for all up blocks and keeps what the first of them would be given."""

    hidden: Tensor
    skips: tuple[Tensor, ...]

    def __init__(self, skips: int) -> None:
        super().__init__()
        self.resnets = [None] * skips

    def forward(self, hidden_states: Tensor, *positional: Any, res_hidden_states_tuple: Any = None, **_: Any) -> Tensor:
        """Record; the return value only has to pass through the emptied output layers."""
        self.hidden = hidden_states
        self.skips = tuple(positional[0] if res_hidden_states_tuple is None else res_hidden_states_tuple)
        return hidden_states


class _Given(nn.Module):
    """Returns the same whatever it is called with."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any, **__: Any) -> Any:
        """The value."""
        return self.value


def _shell(network: nn.Module, **parts: nn.Module | None) -> nn.Module:
    """A copy that shares all parts but the given ones."""
    shell = copy.copy(network)
    object.__setattr__(shell, "_modules", {**network._modules, **parts})
    return shell


def same_output(network: nn.Module, x: Tensor, t: Tensor, condition: Any = None) -> float:
    """Largest deviation of the joined halves from the network's own forward pass: a check for new classes."""
    halves = SplitDiffusers(network)
    with torch.no_grad():
        whole = network(x, t, **arguments(halves.kind, condition), return_dict=False)[0]
        return float((halves(x, t, condition) - whole).abs().max())
