"""How good generated samples are: distances of feature distributions, spread, detail, closeness to a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`` of the Gaussians fitted to two sets of features ``[N, D]``.

    FID (Heusel et al., 2017) with whatever features are given. It falls with the number of samples: compare equal
    numbers only.
    """
    for name, features in (("generated", generated), ("real", real)):
        if features.dim() != 2 or len(features) < 2:
            raise UserError(name, list(features.shape), "features [N, D] of at least two samples")
    ours, theirs = generated.double(), real.double()
    gap = (ours.mean(0) - theirs.mean(0)).square().sum()
    first, second = torch.cov(ours.T), torch.cov(theirs.T)
    root = _root(first)
    # tr (C C')^(1/2) is the sum of the roots of the eigenvalues of C^(1/2) C' C^(1/2), which is symmetric.
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(gap + first.trace() + second.trace() - 2 * shared))


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> dict[str, float]:
    """``precision``: share of the generated samples inside the real ones' manifold; ``recall``: the reverse.

    The manifold of a set is the union of balls around its samples that reach to their k-th neighbour (Kynkaanniemi et
    al., 2019). Use equally many of both.
    """
    if min(len(generated), len(real)) <= neighbours:
        raise UserError("neighbours", neighbours, f"fewer than the samples, {min(len(generated), len(real))}")
    between = torch.cdist(generated.double(), real.double())
    reach_real, reach_generated = _reach(real, neighbours), _reach(generated, neighbours)
    return {
        "precision": float((between <= reach_real).any(1).double().mean()),
        "recall": float((between <= reach_generated[:, None]).any(0).double().mean()),
    }


def within_class_distance(features: Tensor, labels: Tensor) -> float:
    """Mean Euclidean distance of two samples of one class, averaged over classes with at least two."""
    means = []
    for label in labels.unique():
        chosen = features[labels == label].double()
        if len(chosen) > 1:
            means.append(torch.pdist(chosen).mean())
    if not means:
        raise UserError("labels", "no class twice", "at least two samples of one class")
    return float(torch.stack(means).mean())


def high_band_power(images: Tensor, above: float = 0.5) -> float:
    """Mean power of ``images`` ``[N, C, H, W]`` per pixel at frequencies over ``above`` times the highest.

    A frequency's height is the larger of its two axes'; blurring lowers the value, noise raises it.
    """
    if not 0 <= above < 1:
        raise UserError("above", above, "0 or more, below 1")
    power = torch.fft.fft2(images.double(), norm="forward").abs().square()
    rows, columns = (torch.fft.fftfreq(size).abs() * 2 for size in images.shape[-2:])
    height = torch.maximum(rows[:, None], columns[None]).to(power.device)
    return float(power[..., height > above].sum() / (len(images) * images.shape[1]))


def psnr(images: Tensor, reference: Tensor, span: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images; ``span`` is that of the pixel values.

    Equal images count as 100 dB.
    """
    if images.shape != reference.shape:
        raise UserError("images", list(images.shape), f"the reference's shape, {list(reference.shape)}")
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return float((10 * torch.log10(span**2 / error.clamp_min(span**2 * 1e-10))).mean())


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _reach(features: Tensor, neighbours: int) -> Tensor:
    within = torch.cdist(features.double(), features.double())
    # The nearest is the sample itself.
    return within.kthvalue(neighbours + 1, dim=1).values
