"""A small class-conditional UNet in two halves: what the diffusion testbed trains and the examples use.

    encoder    conv_in, then per level residual blocks and a 2 x 2 downsampling, then the middle with attention
    decoder    per level residual blocks that each take one skip, an upsampling, then norm, activation, conv_out

The halves are methods: ``encode`` gives the middle's output and every skip, ``decode`` makes the prediction of them,
and ``forward`` is ``decode(encode(...))``. Layers of the attention are called ``to_q``, ``to_k``, ``to_v``, ``to_out``,
as in diffusers, so that LoRA is put on both in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.diffusion.split import Encoded
from limbeck.errors import UserError

_GROUPS = 8


class SmallUNet(nn.Module):
    """UNet for images ``[B, channels, size, size]``, conditioned on a time and a class.

    Taps: ``conv_in``, ``down.I``, ``middle``, ``up.I``, ``conv_out``; ``I`` counts levels from the input's side.

    Args:
        width: channels of the first level; level I has ``width * multipliers[I]``.
        multipliers: one per level; the image is halved between levels.
        blocks: residual blocks per level; the decoder has one more at the top, for the skip of ``conv_in``.
        classes: conditions ``0 .. classes - 1``; ``classes`` itself is the null condition.
        attention: self-attention at the lowest level, in both halves and in the middle.
        dropout: inside residual blocks.
    """

    def __init__(
        self,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        *,
        blocks: int = 1,
        channels: int = 1,
        classes: int = 10,
        attention: bool = True,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % _GROUPS or not multipliers:
            raise UserError("width", width, f"a multiple of {_GROUPS}, and at least one multiplier")
        self.channels, self.classes = channels, classes
        widths = [width * factor for factor in multipliers]
        embedding = 4 * width
        last = len(widths) - 1
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.condition = nn.Embedding(classes + 1, embedding)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)

        def block(given: int, made: int, level: int) -> nn.Module:
            attended = heads if attention and level == last else 0
            return _Block(given, made, embedding, attended, dropout)

        self.down = nn.ModuleList()
        skips, given = [widths[0]], widths[0]
        for level, made in enumerate(widths):
            parts = nn.ModuleList()
            for _ in range(blocks):
                parts.append(block(given, made, level))
                given = made
                skips.append(given)
            if level < last:
                parts.append(nn.Conv2d(given, given, 3, stride=2, padding=1))
            self.down.append(parts)
        self.middle = block(given, given, last)
        self.up = nn.ModuleList()
        for level, made in reversed(list(enumerate(widths))):
            parts = nn.ModuleList()
            for _ in range(blocks + (level == 0)):
                parts.append(block(given + skips.pop(), made, level))
                given = made
            if level > 0:
                parts.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            self.up.insert(0, parts)
        self.norm_out = nn.GroupNorm(_GROUPS, given)
        self.conv_out = nn.Conv2d(given, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    @property
    def null(self) -> int:
        """The class number that stands for no condition."""
        return self.classes

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction ``[B, channels, H, W]``; see :meth:`encode` for the arguments."""
        return self.decode(self.encode(x, t, condition), t, condition)

    def encode(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Encoded:
        """Middle output and skips.

        Args:
            x: noised images ``[B, channels, H, W]``, H and W divisible by 2 to the power of levels - 1.
            t: times ``[B]`` or a scalar.
            condition: class numbers ``[B]``, embeddings ``[B, 4 * width]`` in place of the table's, or None for null.
        """
        embedding = self.embed(t, condition, len(x))
        hidden = self.conv_in(x)
        skips = [hidden]
        for level in self.down:
            for part in level.children():
                if isinstance(part, _Block):
                    hidden = part(hidden, embedding)
                    skips.append(hidden)
                else:
                    hidden = part(hidden)
        return Encoded(self.middle(hidden, embedding), tuple(skips))

    def decode(self, encoded: Encoded, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction from what :meth:`encode` gave, perhaps at another time."""
        hidden, skips = encoded.hidden, list(encoded.skips)
        embedding = self.embed(t, condition, len(hidden))
        for level in list(self.up)[::-1]:
            for part in level.children():
                if isinstance(part, _Block):
                    hidden = part(torch.cat([hidden, skips.pop()], dim=1), embedding)
                else:
                    hidden = part(hidden)
        prediction: Tensor = self.conv_out(functional.silu(self.norm_out(hidden)))
        return prediction

    def embed(self, t: Tensor, condition: Tensor | None, count: int) -> Tensor:
        """Embedding ``[count, 4 * width]`` of times and conditions."""
        times = torch.as_tensor(t, device=self.conv_in.weight.device).expand(count)
        waves = sinusoids(times, self.time[0].in_features).to(self.conv_in.weight.dtype)  # type: ignore[arg-type]
        if condition is None:
            condition = torch.full((count,), self.null, device=waves.device)
        given = condition if condition.is_floating_point() else self.condition(condition)
        embedded: Tensor = self.time(waves) + given
        return embedded


class _Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the embedding scales and shifts between them; then attention, perhaps."""

    def __init__(self, given: int, made: int, embedding: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, given), nn.Conv2d(given, made, 3, padding=1)
        self.embedding = nn.Linear(embedding, 2 * made)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, made), nn.Conv2d(made, made, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(given, made, 1) if given != made else nn.Identity()
        self.attention = _Attention(made, heads) if heads else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        scale, shift = self.embedding(functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        inner = functional.silu(torch.addcmul(shift, self.norm2(inner), 1 + scale))
        made: Tensor = self.attention(self.shortcut(hidden) + self.conv2(self.dropout(inner)))
        return made


class _Attention(nn.Module):
    """Self-attention over the pixels of a map, added to it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        count, _, height, width = hidden.shape
        rows = self.norm(hidden).flatten(2).transpose(1, 2)
        query, key, value = (
            part(rows).view(count, height * width, self.heads, -1).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        attended: Tensor = hidden + self.to_out(mixed).transpose(1, 2).unflatten(2, (height, width))
        return attended


def sinusoids(times: Tensor, size: int, longest: float = 10_000.0) -> Tensor:
    """``[B, size]``: sines and cosines of the times at ``size / 2`` wavelengths up to ``2 pi longest``."""
    half = size // 2
    rates = torch.exp(-math.log(longest) * torch.arange(half, device=times.device, dtype=torch.float32) / half)
    phases = times.float()[:, None] * rates[None]
    return torch.cat([phases.sin(), phases.cos()], dim=1)
