"""Real textures with generated defects, whose masks are exact: brick, grass and gravel photographed, and a woven cloth.

The left 60% of a photo give the tiles to learn from, the right 40% the tiles to test on. The defects, and all of the
woven cloth, are **generated** (:mod:`limbeck.data.defects`, :mod:`limbeck.data.weave`); the defects of the cloth are
those of a loom. The seed names the texture: ``TEXTURES[seed % 4]``.

``plain`` learns and tests on that texture; ``unseen`` learns on the three others and tests on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.data.artefacts import fetch
from limbeck.data.defects import DefectSynthesiser
from limbeck.data.weave import DEFECTS, woven
from limbeck.testbeds.anomaly import TILE, AnomalyTestbed, Surfaces, hashes
from limbeck.testbeds.base import Size

TEXTURES = ("brick", "grass", "gravel", "woven")
_LEFT, _CONTRAST = 0.6, (0.3, 0.8)
# A few pixels across, or as wide as long.
_GROUPS = {"thin": ("scratch", "stripe", "broken"), "wide": ("blur", "stain", "paste", "float", "knot")}


@dataclass(frozen=True)
class Regime:
    """Tiles: ``good`` to learn from, ``test`` good and as many defective ones."""

    about: str
    good: int
    test: int
    unseen: bool = False


class Textures(AnomalyTestbed):
    """See the module. ``folds`` is the number of textures."""

    name = "textures"
    folds = len(TEXTURES)
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("learn and test on one texture", 140, 100),
        "unseen": Regime("learn on three textures, test on the fourth", 141, 100, unseen=True),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan: Regime = chosen if size == "full" else Regime(chosen.about, 12, 15, chosen.unseen)

    def data_hashes(self) -> dict[str, str]:
        """Of the photos and the backbone."""
        return hashes()

    def surfaces(self, seed: int = 0) -> Surfaces:
        """Of texture ``TEXTURES[seed % 4]``; the tiles of a texture are the same for every seed that names it."""
        return self._surfaces(seed % self.folds, 0, self.plan.unseen)

    def gate_surfaces(self) -> list[Surfaces]:
        """Other tiles and other defects of all textures. The gate learns from the texture itself in ``unseen``, too: it
        asks whether defects can be found, and not whether they can be without having seen the texture."""
        return [self._surfaces(number, 1, unseen=False) for number in range(self.folds)]

    def _surfaces(self, number: int, part: int, unseen: bool) -> Surfaces:
        plan, name = self.plan, TEXTURES[number]
        others = [one for one in TEXTURES if one != name]
        learnt = others if unseen else [name]
        good = torch.cat([_crops(one, plan.good // len(learnt), 0) for one in learnt])
        test, masks, kind, kinds = _test(name, plan.test, 1 + part)
        groups = {group: tuple(one for one in names if one in kinds) for group, names in _GROUPS.items()}
        return Surfaces(good, test, kind, kinds, masks, groups=groups)


def _test(name: str, count: int, part: int) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """``count`` good and ``count`` defective tiles."""
    if name == "woven":
        good, blank, _ = woven(count, TILE, seed=10 * part)
        bad, masks, kinds = woven(count, TILE, seed=10 * part + 1, defects=DEFECTS)
        names: tuple[str, ...] = DEFECTS
    else:
        both = _crops(name, 2 * count, part)
        good, synthesiser = both[:count], DefectSynthesiser(contrast=_CONTRAST)
        foreign = _crops("grass" if name == "gravel" else "gravel", 50, part)
        made = synthesiser(both[count:], seed=part, other=foreign)
        bad, masks, kinds, names = made.images, made.masks, made.kinds, synthesiser.kinds
        blank = torch.zeros_like(masks)
    kind = torch.cat([torch.zeros(count, dtype=torch.int64), kinds + 1])
    return torch.cat([good, bad]), torch.cat([blank, masks]), kind, ("good", *names)


@cache
def _crops(name: str, count: int, part: int) -> Tensor:
    """Tiles of a texture: part 0 from the left of the photo, to learn from, the others from the right."""
    if name == "woven":
        return woven(count, TILE, seed=1000 + part)[0]
    photo = np.array(Image.open(fetch("scikit-image-photos") / f"{name}.png").convert("RGB"))
    border = int(_LEFT * photo.shape[1])
    photo = photo[:, :border] if part == 0 else photo[:, border:]
    random = np.random.default_rng((TEXTURES.index(name), part))
    tops = random.integers(0, photo.shape[0] - TILE + 1, count)
    lefts = random.integers(0, photo.shape[1] - TILE + 1, count)
    tiles = np.stack([photo[top : top + TILE, left : left + TILE] for top, left in zip(tops, lefts)])
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()
