"""Augmentations that mix samples of a batch with one another, targets included."""

from __future__ import annotations

from typing import Any

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn.functional import one_hot

from limbeck.cache.fingerprint import fingerprint_tensors
from limbeck.data.augmentation import seeds_of
from limbeck.data.views import integers, mix, uniform
from limbeck.errors import UserError
from limbeck.signals import Batch

_APPLY, _SHARE, _ROW, _COLUMN, _ORDER, _PARTNER = range(20, 26)


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
        _check(probability, beta)
        self.classes, self.probability, self.beta = classes, probability, beta

    def __call__(self, batch: Batch) -> dict[str, Any]:
        images, target, view = batch["input"], batch["target"], seeds_of(batch)
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


class PartnerMix:
    """CutMix or mixup (Zhang et al., ICLR 2018) with a partner from the whole data set, sample by sample.

    A transform of ``TensorLoader``. Partner, share and rectangle are drawn from a sample's own view seed and depend on
    nothing else in its batch. So a stored view is the same in every batch: with :class:`CutMix` a teacher's answer
    belongs to one batch, with this one it can be cached. ``batch["target"]`` becomes soft labels ``[B, classes]``.

    Args:
        images: all images, ``[N, C, H, W]``, in the form that ``batch["input"]`` has by then.
        target: their classes ``[N]``.
        classes: number of classes.
        kind: ``cutmix`` (a rectangle of the partner) or ``mixup`` (a weighted mean).
        probability: of mixing a sample at all. beta: the share is drawn from Beta(beta, beta).
        augment: applied to the partner with a view of its own, such as :class:`~limbeck.data.augmentation.CropFlip`.
    """

    def __init__(
        self,
        images: Tensor,
        target: Tensor,
        classes: int,
        *,
        kind: str = "cutmix",
        probability: float = 0.5,
        beta: float = 1.0,
        augment: Any = None,
    ) -> None:
        if kind not in ("cutmix", "mixup"):
            raise UserError("kind", kind, ("cutmix", "mixup"))
        if len(images) != len(target):
            raise UserError("target", f"{len(target)} classes", f"one per image, {len(images)}")
        _check(probability, beta)
        self.images, self.target, self.classes, self.kind = images, target, classes, kind
        self.probability, self.beta, self.augment = probability, beta, augment

    def __call__(self, batch: Batch) -> dict[str, Any]:
        given, view = batch["input"], seeds_of(batch)
        target = batch["target"]
        soft = target.float() if target.is_floating_point() else one_hot(target, self.classes).float()
        partner = integers(view, _PARTNER, len(self.images))
        other = self.images[partner].to(given.dtype)
        if self.augment is not None:
            other = self.augment.images(other, mix(view))
        kept = self._kept(given, view)
        share = kept.flatten(1).mean(1, keepdim=True).to(soft.dtype)
        mixed = kept * given + (1 - kept) * other
        theirs = one_hot(self.target[partner], self.classes).to(soft.dtype)
        return {**batch, "input": mixed, "target": share * soft + (1 - share) * theirs}

    def _kept(self, images: Tensor, view: Tensor) -> Tensor:
        """How much of every pixel is the sample's own, ``[B, 1, H, W]``."""
        height, width = images.shape[-2:]
        share = torch.from_numpy(betaincinv(self.beta, self.beta, uniform(view, _SHARE).numpy()))
        share = torch.where(uniform(view, _APPLY) < self.probability, share, 1.0)[:, None, None]
        if self.kind == "mixup":
            return share.expand(-1, height, width)[:, None].to(images.dtype)
        inside = torch.ones(len(view), height, width, dtype=torch.bool)
        for draw, length, axis in ((_ROW, height, 2), (_COLUMN, width, 1)):
            half = ((1 - share).sqrt() * length).long() // 2
            middle = integers(view, draw, length)[:, None, None]
            place = torch.arange(length).unsqueeze(0).unsqueeze(axis)
            inside &= (place >= middle - half) & (place < middle + half)
        return (~inside)[:, None].to(images.dtype)

    def __repr__(self) -> str:
        # What a view is depends on the partners too, and whoever keeps answers to it tells them apart by this.
        origin = fingerprint_tensors({"images": self.images, "target": self.target})[:16]
        return (
            f"PartnerMix({origin}, classes={self.classes}, kind={self.kind}, probability={self.probability}, "
            f"beta={self.beta}, augment={self.augment})"
        )


class Chain:
    """Several transforms of ``TensorLoader``, one after another."""

    def __init__(self, *transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def __repr__(self) -> str:
        return f"Chain{self.transforms!r}"


def _check(probability: float, beta: float) -> None:
    if not 0 <= probability <= 1:
        raise UserError("probability", probability, "0 to 1")
    if not beta > 0:
        raise UserError("beta", beta, "a positive number")
