"""Augmentations that mix samples of a batch with one another, targets included."""

from __future__ import annotations

from typing import Any

from scipy.special import betaincinv
from torch import Tensor
from torch.nn.functional import one_hot

from limbeck.data.views import uniform
from limbeck.errors import UserError
from limbeck.signals import Batch

_APPLY, _SHARE, _ROW, _COLUMN, _ORDER = range(20, 25)


class CutMix:
    """CutMix (Yun et al., ICCV 2019): a rectangle of every image comes from another image of its batch.

    A transform of ``TensorLoader``. ``batch["target"]`` (classes, or soft labels) becomes soft labels ``[B, classes]``,
    mixed by the share of pixels, so the objective must take probabilities, as cross-entropy does. The draw is a
    function of the batch's view seeds, one for the whole batch.

    Args:
        classes: number of classes.
        probability: of mixing a batch at all. beta: the share is drawn from Beta(beta, beta).
    """

    def __init__(self, classes: int, *, probability: float = 0.5, beta: float = 1.0) -> None:
        if not 0 <= probability <= 1:
            raise UserError("probability", probability, "0 to 1")
        if not beta > 0:
            raise UserError("beta", beta, "a positive number")
        self.classes, self.probability, self.beta = classes, probability, beta

    def __call__(self, batch: Batch) -> dict[str, Any]:
        if "view" not in batch:
            raise UserError("batch", sorted(batch), "a batch with view seeds, as TensorLoader(transform=...) gives")
        images, target, view = batch["input"], batch["target"], batch["view"]
        soft = target.float() if target.is_floating_point() else one_hot(target, self.classes).float()
        if not bool(uniform(view[:1], _APPLY) < self.probability):
            return {**batch, "target": soft}
        partner = uniform(view, _ORDER).argsort(stable=True)
        rows, columns = self._box(images, view[:1])
        mixed = images.clone()
        mixed[..., rows, columns] = images[partner][..., rows, columns]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / images[0, 0].numel()
        return {**batch, "input": mixed, "target": kept * soft + (1 - kept) * soft[partner]}

    def _box(self, images: Tensor, view: Tensor) -> tuple[slice, slice]:
        """The rectangle: its middle is anywhere, so that it may be cut off by the edge."""
        share = float(betaincinv(self.beta, self.beta, float(uniform(view, _SHARE))))
        sides = []
        for draw, length in ((_ROW, images.shape[-2]), (_COLUMN, images.shape[-1])):
            half, middle = int(length * (1 - share) ** 0.5) // 2, int(uniform(view, draw) * length)
            sides.append(slice(max(middle - half, 0), min(middle + half, length)))
        return sides[0], sides[1]

    def __repr__(self) -> str:
        return f"CutMix(classes={self.classes}, probability={self.probability}, beta={self.beta})"


class Chain:
    """Several transforms of ``TensorLoader``, one after another."""

    def __init__(self, *transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for transform in self.transforms:
            batch = transform(batch)
        return batch
