"""Reverse distillation: a student that is given a teacher's feature maps and re-creates them from deep to shallow.

Everything is built from the shapes of the taps, so that any network with feature maps of falling size can teach: the
maps are fused on the deepest grid, squeezed through a bottleneck, and unfolded again by a decoder that mirrors them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.nn.channel_attention import SSPCAB, RowSoftmaxGate

FUSIONS = ("sum", "concat")
Shape = Sequence[int]


def conv_relu_norm(channels: int, out: int, kernel_size: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, ReLU, BatchNorm, in this order."""
    convolution = nn.Conv2d(channels, out, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(out))


class UpBlock(nn.Module):
    """A residual block that keeps its grid or doubles it by 2 x 2 transposed convolutions, in branch and shortcut.

    Args:
        channels, out: of the maps that go in and come out.
        double: whether the grid is doubled.
        signed: whether what comes out may be negative; else it passes a ReLU.
    """

    def __init__(self, channels: int, out: int, *, double: bool = False, signed: bool = False) -> None:
        super().__init__()

        def step(kernel_size: int) -> nn.Module:
            if double:
                return nn.ConvTranspose2d(channels, out, 2, 2, bias=False)
            return nn.Conv2d(channels, out, kernel_size, padding=kernel_size // 2, bias=False)

        second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.branch = nn.Sequential(step(3), nn.BatchNorm2d(out), nn.ReLU(), second, nn.BatchNorm2d(out))
        plain = not double and channels == out
        self.shortcut = nn.Identity() if plain else nn.Sequential(step(1), nn.BatchNorm2d(out))
        self.signed = signed

    def forward(self, maps: Tensor) -> Tensor:
        summed: Tensor = self.branch(maps) + self.shortcut(maps)
        return summed if self.signed else summed.relu()


class Fusion(nn.Module):
    """All taps on the deepest grid with the deepest tap's channels: 1 x 1 convolutions of stride 2, then sum or concat.

    A tap that is ``n`` halvings above the deepest grid takes ``n`` steps; its channels are ``width / 2^(n - 1)``, ...,
    ``width / 2``, ``width``.
    """

    def __init__(self, shapes: Sequence[Shape], width: int, how: str = "sum") -> None:
        super().__init__()
        if how not in FUSIONS:
            raise UserError("fusion", how, FUSIONS)
        self.concat = how == "concat"
        self.paths = nn.ModuleList(self._path(shape, shapes[-1], width) for shape in shapes)
        self.channels = width * len(shapes) if self.concat else width

    @staticmethod
    def _path(shape: Shape, deepest: Shape, width: int) -> nn.Sequential:
        halvings = _halvings(shape, deepest)
        widths = [max(width // 2 ** (halvings - step), 1) for step in range(1, halvings + 1)] or [width]
        parts, channels = [], shape[0]
        for out in widths:
            parts.append(conv_relu_norm(channels, out, stride=2 if halvings else 1))
            channels = out
        return nn.Sequential(*parts)

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        maps = [path(tap) for path, tap in zip(self.paths, taps, strict=True)]
        return torch.cat(maps, 1) if self.concat else torch.stack(maps).sum(0)


class Link(nn.Module):
    """A shallower teacher map for a deeper level of the decoder: 3 x 3 convolution, pooling to its grid, a gate.

    Never from a level to itself: an anomaly would be copied and not missed.
    """

    def __init__(self, shape: Shape, target: Shape) -> None:
        super().__init__()
        self.cells = 2 ** _halvings(shape, target)
        self.bring, self.gate = conv_relu_norm(shape[0], target[0], 3), RowSoftmaxGate(target[0])

    def forward(self, tap: Tensor) -> Tensor:
        gated: Tensor = self.gate(functional.avg_pool2d(self.bring(tap), self.cells))
        return gated


class ReverseStudent(nn.Module):
    """Fusion, bottleneck, decoder and links, for taps of given shapes.

    Args:
        shapes: name -> ``(channels, height, width)`` of the teacher's taps, from shallow to deep; a grid is that of the
            one before, or smaller by a power of two.
        fusion: ``sum`` or ``concat``.
        links: whether maps of level ``i`` are linked to the decoder's level ``i + 1``.
        attention: whether the bottleneck ends with SSPCAB and a gate.
        blocks: residual blocks per level of the decoder.
        signed: whether taps have negative values (a linear layer gave them, as in MobileNetV2); else the decoder's
            levels end with a ReLU, as the teacher's do.
        smallest: cells that a side of the bottleneck's grid must have. A deepest tap of fewer than twice as many keeps
            its grid: SSPCAB sees nothing on two cells, and BatchNorm no variance on one.

    Called with the taps by name, or with one mapping of them, it returns maps of the same names and shapes.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        *,
        fusion: str = "sum",
        links: bool = True,
        attention: bool = True,
        blocks: int = 2,
        signed: bool = False,
        smallest: int = 4,
    ) -> None:
        super().__init__()
        self.names, sizes = tuple(shapes), [tuple(int(number) for number in shape) for shape in shapes.values()]
        if len(sizes) < 2 or blocks < 1:
            raise UserError("shapes, blocks", f"{len(sizes)} taps, {blocks}", "two or more taps, one or more blocks")
        width = sizes[-1][0]
        self.fusion = Fusion(sizes, width, fusion)
        squeeze = min(sizes[-1][1:]) >= 2 * smallest
        self.bottleneck = nn.Sequential(
            conv_relu_norm(self.fusion.channels, width),
            conv_relu_norm(width, width),
            conv_relu_norm(width, 2 * width, stride=2 if squeeze else 1),
            *([SSPCAB(2 * width), RowSoftmaxGate(2 * width, 3, layers=1)] if attention else []),
        )
        self.levels, above = nn.ModuleList(), (2 * width, *(-(-side // (1 + squeeze)) for side in sizes[-1][1:]))
        for shape in reversed(sizes):
            self.levels.append(_level(above, shape, blocks, signed))
            above = shape
        # Link i goes from tap i to level i + 1; the shallowest level gets none.
        self.links = nn.ModuleList(Link(a, b) for a, b in pairwise(sizes)) if links else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, taps: Mapping[str, Tensor] | None = None, **named: Tensor) -> dict[str, Tensor]:
        given = dict(taps or {}) | named
        missing = [name for name in self.names if name not in given]
        if missing:
            raise UserError("taps", sorted(given), self.names)
        maps = [given[name] for name in self.names]
        current: Tensor = self.bottleneck(self.fusion(maps))
        made: dict[str, Tensor] = {}
        for step, level in enumerate(self.levels):
            place = len(maps) - 1 - step
            current = level(current)
            if self.links is not None and place > 0:
                current = current + self.links[place - 1](maps[place - 1])
            made[self.names[place]] = current
        return {name: made[name] for name in self.names}


def _level(above: Shape, shape: Shape, blocks: int, signed: bool) -> nn.Sequential:
    doublings = _halvings(shape, above)
    count = max(blocks, doublings)
    return nn.Sequential(
        *(
            UpBlock(above[0] if n == 0 else shape[0], shape[0], double=n < doublings, signed=signed and n == count - 1)
            for n in range(count)
        )
    )


def _halvings(finer: Shape, coarser: Shape) -> int:
    """How often the grid of ``finer`` is halved to give that of ``coarser``."""
    count = round(math.log2(max(finer[1] / coarser[1], 1)))
    if any(side != small * 2**count for side, small in zip(finer[1:], coarser[1:], strict=True)):
        raise UserError(
            "shapes", f"grids {tuple(finer[1:])} and {tuple(coarser[1:])}", "each half of the one before, or equal",
            "give images whose sides are multiples of the deepest stride, and of twice that for the bottleneck",
        )  # fmt: skip
    return count


class TapEncoder(nn.Module):
    """A small network that gives maps of the taps' shapes from the image: the student of forward distillation.

    Args:
        shapes: as of :class:`ReverseStudent`, shallow to deep.
        size: height and width of the image, a power of two times the taps' grids.
        blocks: residual blocks per level. signed: as of :class:`ReverseStudent`.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], size: tuple[int, int], *, blocks: int = 2, signed: bool = False
    ) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self.levels = nn.ModuleList()
        above: Shape = (3, *size)
        for shape in shapes.values():
            steps: list[nn.Module] = []
            channels = above[0]
            for _ in range(_halvings(above, shape)):
                steps.append(conv_relu_norm(channels, shape[0], 3, stride=2))
                channels = shape[0]
            for number in range(blocks):
                steps.append(UpBlock(channels, shape[0], signed=signed and number == blocks - 1))
                channels = shape[0]
            self.levels.append(nn.Sequential(*steps))
            above = shape

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        made, current = {}, images
        for name, level in zip(self.names, self.levels, strict=True):
            current = level(current)
            made[name] = current
        return made
