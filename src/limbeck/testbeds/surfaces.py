"""Surfaces with defects that somebody else made: simulated textiles, and photos of solar cells.

``plain``: 250 x 250 images of a stochastic textile surface, **simulated** by the authors of the set; a local defect is
a patch of some ten pixels from another process, a global one another direction and grain of the whole. No masks. The
last row and column of every image are white, whatever its kind; they are cut off, and nothing is resized.
``solar``: **real** electroluminescence photos of polycrystalline solar cells; good ones have the defect probability 0,
defective ones 1 (the unsure third between is left out). No masks. Cells of one module are alike and nobody says which
belong together, so that good test cells may come from modules that were trained on.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.data.artefacts import fetch
from limbeck.testbeds.anomaly import TILE, AnomalyTestbed, Surfaces, hashes
from limbeck.testbeds.base import Size

_TEXTILES, _CELLS = "conformal-clip-data", "elpv-dataset"


@dataclass(frozen=True)
class Regime:
    """Images of each kind: ``good`` to learn from, ``test`` good ones and per kind of defect.

    ``side`` in pixels is what an image is resized to, or, with ``cut``, what is kept of its upper left; ``across``
    tiles stand side by side, and overlap where they do not fit. ``score`` of an image from its map is the mean where a
    defect may be one of the whole image.
    """

    about: str
    artefact: str
    good: int
    test: int
    side: int
    across: int
    cut: bool = False
    score: str = "max"


class SurfaceImages(AnomalyTestbed):
    """See the module. Every image becomes ``across^2`` tiles."""

    name = "surfaces"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("simulated textiles, local and global defects", _TEXTILES, 30, 20, 249, 4, True, "mean"),
        "solar": Regime("real photos of solar cells", _CELLS, 180, 60, 128, 2),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        small = replace(chosen, good=12, test=3, side=TILE, across=1)
        self.plan: Regime = chosen if size == "full" else small
        self.score = chosen.score

    def data_hashes(self) -> dict[str, str]:
        """Of the set, the backbone and the photos that it is checked with."""
        return hashes(self.plan.artefact)

    def surfaces(self, seed: int = 0) -> Surfaces:
        """The same images for every seed."""
        return self._surfaces(0)

    def gate_surfaces(self) -> list[Surfaces]:
        """The next images of every kind, the same ones to learn from."""
        return [self._surfaces(1)]

    def _surfaces(self, part: int) -> Surfaces:
        plan = self.plan
        pools = _pools(fetch(plan.artefact), plan.artefact == _CELLS)
        test, kind = [], []
        good = next(iter(pools.values()))
        for number, paths in enumerate(pools.values()):
            start = (plan.good if number == 0 else 0) + part * plan.test
            test += paths[start : start + plan.test]
            kind += [number] * plan.test
        learnt, judged = (_tiles(tuple(paths), plan.side, plan.across, plan.cut) for paths in (good[: plan.good], test))
        return Surfaces(learnt, judged, torch.tensor(kind), tuple(pools), tiles=plan.across**2)


@cache
def _pools(folder: Path, cells: bool) -> dict[str, list[Path]]:
    """Images by kind, good ones first, in a fixed random order: neighbouring numbers are neighbours on a module."""
    if not cells:
        pools = {"good": "nominal", "local": "local", "global": "global"}
        found = {kind: sorted((folder / name).iterdir()) for kind, name in pools.items()}
    else:
        found = {"good": [], "defective": []}
        with (folder / "labels.csv").open(newline="") as stream:
            for name, probability, module in csv.reader((" ".join(line.split()) for line in stream), delimiter=" "):
                if module == "poly" and float(probability) in (0.0, 1.0):
                    found["defective" if float(probability) else "good"].append(folder / name)
    generator = torch.Generator().manual_seed(0)
    return {
        kind: [paths[place] for place in torch.randperm(len(paths), generator=generator).tolist()]
        for kind, paths in found.items()
    }


@cache
def _tiles(paths: tuple[Path, ...], side: int, across: int, cut: bool) -> Tensor:
    made, places = [], torch.linspace(0, side - TILE, across).round().long().tolist()
    for path in paths:
        picture = Image.open(path).convert("RGB")
        fitted = picture.crop((0, 0, side, side)) if cut else picture.resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
        made += [pixels[:, top : top + TILE, left : left + TILE] for top in places for left in places]
    return torch.stack(made)
