from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import EDMDenoiser, Guided, count, guide, null_like, select, stacked
from limbeck.diffusion.noise import DiscreteSchedule, EDMSchedule
from limbeck.errors import UserError


class Spy:
    """Answers with the condition, so that order and scale can be read off."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Any]] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        self.calls.append((x, t, condition))
        value = condition["text"][:, 0] if isinstance(condition, dict) else condition
        return value.float()[:, None] * torch.ones_like(x)


def test_unconditional_half_comes_first_in_one_call() -> None:
    spy, x = Spy(), torch.zeros(3, 2)
    made = Guided(spy, 3.0, null=10)(x, torch.tensor(7), torch.tensor([1, 2, 3]))
    [(seen, t, condition)] = spy.calls
    assert condition.tolist() == [10, 10, 10, 1, 2, 3]
    assert len(seen) == 6
    assert t.tolist() == [7] * 6
    assert made[:, 0].tolist() == [10 + 3 * (c - 10) for c in (1, 2, 3)]


def test_scale_one_never_asks_for_the_null_half() -> None:
    spy = Spy()
    made = Guided(spy, 1.0)(torch.zeros(2, 2), torch.tensor(7), torch.tensor([4, 5]))
    assert spy.calls[0][2].tolist() == [4, 5]
    assert made[:, 0].tolist() == [4, 5]


def test_scale_zero_asks_for_the_null_half_alone() -> None:
    spy = Spy()
    Guided(spy, 0.0, null=9)(torch.zeros(2, 2), torch.tensor(7), torch.tensor([4, 5]))
    assert spy.calls[0][2].tolist() == [9, 9]


def test_mapping_conditions_and_negative_scales() -> None:
    spy, text = Spy(), torch.ones(2, 4)
    made = Guided(spy, -1.0, null={"text": torch.zeros(4)})(torch.zeros(2, 2), torch.tensor(1), {"text": text})
    assert spy.calls[0][2]["text"].shape == (4, 4)
    assert made.tolist() == [[-1.0, -1.0]] * 2


def test_guidance_is_the_same_in_every_prediction() -> None:
    schedule, generator = DiscreteSchedule(DiscreteSchedule.linear().abar.double()), torch.Generator().manual_seed(0)
    x, cond, null = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([5, 200, 600, 900])
    wanted = schedule.x0(guide(null, cond, 2.5), x, t)
    for kind in ("x0", "v"):
        parts = (schedule.convert(part, x, t, "eps", kind) for part in (null, cond))
        torch.testing.assert_close(schedule.x0(guide(*parts, 2.5), x, t, kind), wanted)


def test_a_scale_per_sample() -> None:
    made = guide(torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.tensor([1.0, 4.0]))
    assert made[:, 0, 0].tolist() == [1.0, 4.0]


def test_missing_null_is_refused() -> None:
    with pytest.raises(UserError, match="null"):
        Guided(Spy(), 2.0)
    with pytest.raises(UserError, match="null"):
        Guided(Spy(), 2.0, null=3)(torch.zeros(1, 2), torch.tensor(0), None)
    with pytest.raises(UserError, match="text"):
        null_like({"text": torch.zeros(1, 2)}, {"image": 0})


def test_stacked_keeps_the_order() -> None:
    made: Any = stacked([{"a": torch.tensor([1])}, {"a": torch.tensor([2, 3])}])
    assert made["a"].tolist() == [1, 2, 3]


def test_edm_denoiser_of_a_network_that_says_nothing() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            self.seen = (x, t)
            return torch.zeros_like(x)

    network, schedule = Silent(), EDMSchedule(data=1.0)
    made = EDMDenoiser(network, schedule)(torch.full((2, 1), 4.0), torch.tensor([1.0, 3.0]))
    # The best linear guess: data^2 / (data^2 + sigma^2) x.
    assert made[:, 0].tolist() == pytest.approx([2.0, 0.4])
    assert network.seen[0][:, 0].tolist() == pytest.approx([4 / 2**0.5, 4 / 10**0.5])


def test_conditions_are_counted_and_chosen_whatever_their_kind() -> None:
    labels, texts = torch.arange(4), {"text": torch.arange(8).view(4, 2)}
    assert count(labels) == count(texts) == 4
    assert torch.equal(select(labels, slice(1, 3)), torch.tensor([1, 2]))  # type: ignore[arg-type]
    assert select(texts, slice(3, 4))["text"].tolist() == [[6, 7]]  # type: ignore[index,call-overload]
    assert select(None, slice(0, 1)) is None
    with pytest.raises(UserError, match="condition"):
        count(None)
