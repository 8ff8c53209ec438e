"""Quantisers: values exactly at points, gradients against autograd, finite differences and hand-made cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.quantization import Scaling, encode, levels, quantile_points, quantise, uniform_points
from limbeck.quantization.quantisers import nearest


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1000,), (3, 5, 7), (1,), (0,), (16, 16, 3, 3)])
def test_a_bucket_has_at_most_two_to_the_bits_values_its_ends_among_them(bits: int, shape: tuple[int, ...]) -> None:
    weight = values(*shape)
    quantised = quantise(weight, Scaling(), count=2**bits)
    assert quantised.shape == weight.shape
    for own, bucket in zip(weight.flatten().split(256), quantised.flatten().split(256), strict=True):
        assert len(bucket.unique()) <= 2**bits
        if len(own):
            torch.testing.assert_close(bucket.max(), own.max())
            torch.testing.assert_close(bucket.min(), own.min())
            step = (own.max() - own.min()) / (2**bits - 1)
            assert float((bucket - own).abs().max()) <= float(step) / 2 + 1e-6


def test_two_bits_by_hand() -> None:
    weight = torch.tensor([0.0, 0.4, 0.6, 1.1, 1.4, 1.6, 2.6, 3.0])
    assert quantise(weight, Scaling(), count=4).tolist() == [0, 0, 1, 1, 1, 2, 3, 3]


def test_signed_scaling_keeps_zero_and_the_sign() -> None:
    weight = torch.tensor([-1.0, -0.3, 0.0, 0.2, 0.9])
    scaling = Scaling("absmax")
    assert levels(3, scaling) == 7
    coded = encode(weight, scaling, count=7)
    torch.testing.assert_close(coded.decode(), torch.tensor([-1, -1 / 3, 0, 1 / 3, 1]))
    assert coded.codes.tolist() == [0, 2, 3, 4, 6]


def test_layout_and_type_are_those_of_the_weight() -> None:
    weight = values(4, 3, 5, 5).to(memory_format=torch.channels_last)
    quantised = quantise(weight, Scaling(), count=16)
    assert quantised.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(quantised, quantise(weight.contiguous(), Scaling(), count=16))
    assert quantise(weight.bfloat16(), Scaling(), count=4).dtype == torch.bfloat16


def test_stochastic_rounding_is_right_on_average_and_stays_next_to_the_value() -> None:
    weight = torch.cat([torch.tensor([0.0, 1.0]), torch.full((100_000,), 0.4)])
    torch.manual_seed(0)
    rounded = quantise(weight, Scaling(bucket_size=None), count=4, stochastic=True)
    assert rounded[:2].tolist() == [0, 1]
    torch.testing.assert_close(rounded[2:].unique(), torch.tensor([1 / 3, 2 / 3]))
    assert float(rounded[2:].mean()) == pytest.approx(0.4, abs=2e-3)


# Gradients.


def gradient_of(weight: Tensor, goal: Tensor, **options: object) -> Tensor:
    weight = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((quantise(weight, Scaling(), **options) * goal).sum(), weight)  # type: ignore[arg-type]
    return gradient


def test_straight_through_is_the_gradient_at_the_quantised_weight() -> None:
    weight, goal = values(5, 70), values(5, 70, seed=1)
    assert torch.equal(gradient_of(weight, goal, count=4), goal)


def test_truncated_clamps_first_and_stops_the_gradient_beyond_one() -> None:
    weight, goal = torch.tensor([-3.0, -0.5, 0.2, 1.5]), torch.ones(4)
    assert gradient_of(weight, goal, count=4, gradient="truncated").tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(
        quantise(weight, Scaling(), count=4, gradient="truncated"), torch.tensor([-1, -1 / 3, 1 / 3, 1])
    )


@pytest.mark.parametrize("shape", [(700,), (3, 5, 7), (256,), (1,), (0,)])
def test_exact_is_autograd_through_the_extremes(shape: tuple[int, ...]) -> None:
    weight, goal = values(*shape).double(), values(*shape, seed=1).double()
    leaf = weight.clone().requires_grad_()
    pieces = []
    for bucket in leaf.flatten().split(256):
        if not len(bucket):
            continue
        low, scale = bucket.min(), bucket.max() - bucket.min()
        scale = torch.where(scale > 0, scale, 1.0)
        share = (bucket - low) / scale
        pieces.append(scale * (share + ((share * 3).round() / 3 - share).detach()) + low)
    whole = torch.cat(pieces).view(shape) if pieces else leaf * 0
    (wanted,) = torch.autograd.grad((whole * goal).sum(), leaf)
    given = gradient_of(weight, goal, count=4, gradient="exact")
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)
    if weight.numel() > 4:
        assert not torch.equal(given, goal)


def test_exact_puts_an_extreme_in_the_filling_on_the_last_value() -> None:
    weight, goal = torch.tensor([0.0, 0.2, 0.1, 0.6, 1.0]), torch.ones(5)
    options: dict[str, object] = {"count": 3, "gradient": "exact"}
    leaf = weight.clone().requires_grad_()
    out = quantise(leaf, Scaling(bucket_size=3), **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad((out * goal).sum(), leaf)
    # The second bucket is (0.6, 1, 1): rounding is exact there, so only the first bucket moves its extremes.
    torch.testing.assert_close(gradient, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0]), rtol=0, atol=1e-6)


def test_the_points_gradient_is_the_sum_over_their_cells() -> None:
    weight = torch.tensor([0.0, 1.0, 2.0, 10.0, 20.0, 20.0, 110.0])
    points = torch.tensor([0.0, 0.3, 0.9], requires_grad=True)
    out = quantise(weight, Scaling(bucket_size=4), points=points)
    torch.testing.assert_close(out, torch.tensor([0, 0, 3.0, 9.0, 20.0, 20.0, 101.0]))
    (gradient,) = torch.autograd.grad((out * torch.arange(1.0, 8.0)).sum(), points)
    # alpha is 10 in the first bucket and 90 in the second.
    assert gradient.tolist() == [10 * (1 + 2) + 90 * (5 + 6), 10 * 3, 10 * 4 + 90 * 7]


def test_the_points_gradient_against_finite_differences_in_any_order_of_points() -> None:
    weight = values(300).double()
    points = torch.tensor([0.7, 0.1, 0.95, 0.4], dtype=torch.float64, requires_grad=True)

    def loss(at: Tensor) -> Tensor:
        return (quantise(weight, Scaling(), points=at) - weight.sin()).square().sum()

    (gradient,) = torch.autograd.grad(loss(points), points)
    for place in range(4):
        nudge = torch.zeros(4, dtype=torch.float64)
        nudge[place] = 1e-7
        slope = (loss(points.detach() + nudge) - loss(points.detach() - nudge)) / 2e-7
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-5)


def test_tied_points_and_empty_cells_are_harmless() -> None:
    points = torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0], requires_grad=True)
    out = quantise(torch.tensor([0.0, 0.1, 0.45, 1.0]), Scaling(), points=points)
    assert out.tolist() == [0, 0, 0.5, 1]
    (gradient,) = torch.autograd.grad(out.sum(), points)
    assert gradient.tolist() == [2, 1, 0, 0, 1]


def test_both_learn_at_once() -> None:
    weight, points = values(40).requires_grad_(), uniform_points(4, Scaling()).requires_grad_()
    ours, theirs = torch.autograd.grad(quantise(weight, Scaling(), points=points).sum(), (weight, points))
    assert torch.equal(ours, torch.ones(40))
    assert float(theirs.sum()) == pytest.approx(40 * float((weight.max() - weight.min()).detach()), rel=1e-5)


# Points.


def test_nearest_is_the_nearest() -> None:
    given, points = torch.rand(500, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.7, 0.71])
    assert torch.equal(nearest(given, points), (given[:, None] - points).abs().argmin(dim=1))


def test_quantiles_share_the_values_evenly_and_reach_both_ends() -> None:
    points = quantile_points(values(4000).exp(), 5, Scaling(bucket_size=None))
    assert points[0] == 0
    assert points[-1] == 1
    scaled = Scaling(bucket_size=None)(values(4000).exp()).values.flatten()
    torch.testing.assert_close(points.double(), torch.quantile(scaled.double(), torch.linspace(0, 1, 5).double()))
    assert len(quantile_points(torch.zeros(0), 4, Scaling())) == 4
    assert quantile_points(torch.tensor([2.0]), 4, Scaling()).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("bits", lambda: levels(0, Scaling())),
        ("bits", lambda: levels(17, Scaling())),
        ("bits", lambda: levels(1, Scaling("absmax"))),
        ("bits", lambda: levels(2.5, Scaling())),  # type: ignore[arg-type]
        ("points", lambda: uniform_points(1, Scaling())),
        ("points", lambda: quantise(torch.ones(3), Scaling())),
        ("gradient", lambda: quantise(torch.ones(3), Scaling(), count=4, gradient="none")),
        ("scaling", lambda: quantise(torch.ones(3), Scaling("absmax"), count=3, gradient="exact")),
    ],
)
def test_mistakes_are_named(key: str, call: object) -> None:
    with pytest.raises(UserError, match=key):
        call()  # type: ignore[operator]


def test_a_first_look_in_inference_mode_spoils_no_later_training() -> None:
    with torch.inference_mode():
        quantise(values(9), Scaling(), count=11)
    torch.testing.assert_close(
        gradient_of(values(9), torch.ones(9), count=11, gradient="exact").sum(), torch.tensor(9.0)
    )
