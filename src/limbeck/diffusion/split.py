"""A UNet as two halves: an encoder that reads the noised sample, and a decoder that makes the prediction.

    encode(x, t, condition) -> Encoded        middle output and every skip, that of the first convolution included
    decode(encoded, t, condition) -> output   needs no x
    forward = decode(encode(x, t, condition), t, condition)

Networks of diffusers get this interface from :func:`split` without being changed (see
:mod:`limbeck.diffusion.adapters`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """What the decoder reads: the middle's output and the skips, the first convolution's output first.

    Rows are samples; adapters of video networks have one row per frame.
    """

    hidden: Tensor
    skips: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.hidden)

    def repeat(self, times: int) -> Encoded:
        """The same ``times`` times over, one copy behind the other."""
        return self._map(lambda tensor: tensor.repeat(times, *(1,) * (tensor.dim() - 1)))

    def rows(self, start: int, stop: int) -> Encoded:
        """Rows ``start`` to ``stop``."""
        return self._map(lambda tensor: tensor[start:stop])

    @staticmethod
    def cat(parts: Sequence[Encoded]) -> Encoded:
        """The rows of several, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        skips = zip(*(part.skips for part in parts), strict=True)
        return Encoded(torch.cat([part.hidden for part in parts]), tuple(torch.cat(skip) for skip in skips))

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.hidden, *self.skips))

    def _map(self, change: Any) -> Encoded:
        return Encoded(change(self.hidden), tuple(change(skip) for skip in self.skips))


@runtime_checkable
class SplitUNet(Protocol):
    """Anything with the two halves. ``condition`` is whatever the network takes beside sample and time."""

    def encode(self, x: Tensor, t: Tensor, condition: Any = None) -> Encoded:
        """The first half."""
        ...

    def decode(self, encoded: Encoded, t: Tensor, condition: Any = None) -> Tensor:
        """The second half."""
        ...


def split(network: Any) -> SplitUNet:
    """``network`` as two halves: itself if it has them, else an adapter for its class.

    Raises:
        UserError: the network has no encoder and decoder, as diffusion transformers have none; the message names its
            class. Cutting such a network at a guessed block would be another method.
    """
    if isinstance(network, SplitUNet):
        return network
    from limbeck.diffusion import adapters
    from limbeck.diffusion.denoiser import DiffusersDenoiser

    if isinstance(network, DiffusersDenoiser):
        network = network.unet
    kind = adapters.kind_of(network)
    if kind is None:
        raise UserError(
            "network",
            type(network).__name__,
            ["SmallUNet", *adapters.KINDS, "any object with encode and decode"],
            "a network without encoder and decoder halves has no skips to keep",
        )
    return adapters.SplitDiffusers(network)


@dataclass
class Counts:
    """Calls of the halves, and the rows (samples) in them."""

    encoder_calls: int = 0
    encoder_rows: int = 0
    decoder_calls: int = 0
    decoder_rows: int = 0


class Counted:
    """A split network that counts its calls; everything else is passed on.

    FLOPs follow from rows, since every layer works on rows one by one: ``cost * rows`` with the cost of
    :func:`split_flops`.
    """

    def __init__(self, network: SplitUNet) -> None:
        self.network, self.counts = network, Counts()

    def encode(self, x: Tensor, t: Tensor, condition: Any = None) -> Encoded:
        """See :class:`SplitUNet`."""
        self.counts.encoder_calls += 1
        self.counts.encoder_rows += len(x)
        return self.network.encode(x, t, condition)

    def decode(self, encoded: Encoded, t: Tensor, condition: Any = None) -> Tensor:
        """See :class:`SplitUNet`."""
        self.counts.decoder_calls += 1
        self.counts.decoder_rows += len(encoded)
        return self.network.decode(encoded, t, condition)

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.decode(self.encode(x, t, condition), t, condition)


@torch.no_grad()
def split_flops(network: SplitUNet, x: Tensor, t: Tensor, condition: Any = None) -> dict[str, float]:
    """FLOPs per row of ``encode`` and ``decode``, counted as :func:`limbeck.measure.flops` does."""
    from limbeck.measure.cost import count_flops

    encode = count_flops(lambda: network.encode(x, t, condition), *_modules(network))
    encoded = network.encode(x, t, condition)
    decode = count_flops(lambda: network.decode(encoded, t, condition), *_modules(network))
    return {"encode": encode / len(x), "decode": decode / len(x)}


def _modules(network: Any) -> Sequence[nn.Module]:
    return [part for part in (network, getattr(network, "network", None)) if isinstance(part, nn.Module)]
