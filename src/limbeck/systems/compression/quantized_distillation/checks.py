"""What mathematics decides about the method, as deviations that must vanish."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.experiment import Exact
from limbeck.models.small import small_cnn
from limbeck.quantization import PackedNetwork, Scaling, UniformWeights, encode, quantise

SHAPES = ((3, 5, 7), (1000,), (256,), (1,), (2, 300))


def _tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def scaling_round_trip() -> float:
    """Largest difference of a tensor from what is left after scaling and undoing it, over kinds and bucket sizes."""
    scalings = [Scaling(kind, size) for kind in ("linear", "absmax", "absnorm") for size in (None, 7, 256)]
    gaps = [(scaling(tensor).restore() - tensor).abs().max() for scaling in scalings for tensor in _tensors()]
    return float(torch.stack(gaps).max())


def values_too_many() -> float:
    """By how many the distinct values of any bucket exceed 2^bits."""
    worst = 0
    for bits in (1, 2, 4, 8):
        for tensor in _tensors():
            for bucket in quantise(tensor, Scaling(), count=2**bits).flatten().split(256):
                worst = max(worst, len(bucket.unique()) - 2**bits)
    return float(worst)


def points_gradient() -> float:
    """Largest difference of dL/dp from central differences of L = sum (Q(w) - goal)^2."""
    weight = torch.randn(600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = torch.tensor([0.03, 0.31, 0.52, 0.9], dtype=torch.float64, requires_grad=True)

    def loss(at: Tensor) -> Tensor:
        return (quantise(weight, Scaling(), points=at) - weight.cos()).square().sum()

    (gradient,) = torch.autograd.grad(loss(points), points)
    step, worst = 1e-7, 0.0
    for place in range(len(points)):
        nudge = torch.zeros_like(points).index_fill(0, torch.tensor(place), step)
        slope = (loss(points.detach() + nudge) - loss(points.detach() - nudge)) / (2 * step)
        worst = max(worst, abs(float(slope - gradient[place])) / max(1.0, abs(float(slope))))
    return worst


def exact_gradient() -> float:
    """Largest difference of the exact gradient from autograd through min, max and a rounding taken as the identity."""
    worst = 0.0
    for tensor in _tensors():
        weight = tensor.flatten().requires_grad_()
        goal = weight.detach().sin()
        pieces = []
        for bucket in weight.split(256):
            low, scale = bucket.min(), bucket.max() - bucket.min()
            scale = torch.where(scale > 0, scale, 1.0)
            share = (bucket - low) / scale
            pieces.append(scale * (share + ((share * 3).round() / 3 - share).detach()) + low)
        (wanted,) = torch.autograd.grad((torch.cat(pieces) * goal).sum(), weight)
        (given,) = torch.autograd.grad((quantise(weight, Scaling(), count=4, gradient="exact") * goal).sum(), weight)
        worst = max(worst, float((given - wanted).abs().max()))
    return worst


def file_round_trip() -> float:
    """Largest difference between what training sees and what comes out of the file, over 1, 2, 3, 4 and 8 bits."""
    worst = 0.0
    for bits in (1, 2, 3, 4, 8):
        network: nn.Module = small_cnn("4k")
        view = UniformWeights(network, bits)
        with tempfile.TemporaryDirectory() as folder:
            file = PackedNetwork.of(network, view).save(Path(folder) / "network.safetensors")
            read = PackedNetwork.load(file).tensors()
        worst = max(
            worst, *(float((read[n] - value).detach().abs().max()) for n, value in view.tensors(network).items())
        )
    return worst


def idempotence() -> float:
    """Largest difference between a quantised tensor and the same quantised again."""
    once = [quantise(tensor, Scaling(), count=4) for tensor in _tensors()]
    return max(float((encode(tensor, Scaling(), count=4).decode() - tensor).abs().max()) for tensor in once)


EXACT = (
    Exact("Scaling a tensor and undoing it gives the tensor", scaling_round_trip, 1e-12, "[code]"),
    Exact("A bucket has at most 2^bits values", values_too_many, 0.0, "[paper]"),
    Exact("The gradient of the points is that of finite differences", points_gradient, 1e-6, "[code]"),
    Exact("The exact gradient is autograd's, through the extremes", exact_gradient, 1e-12, "[code]"),
    Exact("What comes out of the file is what training saw", file_round_trip, 0.0, "[choice]"),
    Exact("Quantising again changes nothing", idempotence, 1e-12, "[choice]"),
)
