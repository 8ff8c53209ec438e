from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from limbeck.diffusion.analytic import MixtureDenoiser
from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.scores import FrozenNetwork, Scores, sds, vsd
from limbeck.errors import UserError

SCHEDULE = DiscreteSchedule.scaled_linear()
X, T, LABELS = (
    torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
    torch.tensor([5, 300, 600, 999]),
    torch.tensor([0, 1, 0, 1]),
)


def network(seed: int = 0) -> MLPDenoiser:
    torch.manual_seed(seed)
    return MLPDenoiser(2, 16, 2, classes=2).eval()


def test_guidance_is_that_of_eps_and_of_x0() -> None:
    scores = Scores.full(network(), schedule=SCHEDULE, null=2)
    asked, null = scores.teacher(X, T, LABELS), scores.teacher(X, T, torch.full((4,), 2))
    eps = null + 2.5 * (asked - null)
    torch.testing.assert_close(scores.eps_real(X, T, LABELS, 2.5), eps)
    torch.testing.assert_close(scores.x0_real(X, T, LABELS, 2.5), SCHEDULE.x0(eps, X, T), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.eps_real(X, T, LABELS, 0.0), null)
    with pytest.raises(UserError, match="null"):
        Scores.full(network(), schedule=SCHEDULE).eps_real(X, T, LABELS, 2.0)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_other_predictions_are_converted_before_the_difference(prediction: str) -> None:
    scores = Scores.full(network(), schedule=SCHEDULE, prediction=prediction)
    expected = SCHEDULE.eps(scores.teacher(X, T, LABELS), X, T, prediction)
    torch.testing.assert_close(scores.eps_real(X, T, LABELS), expected)


def test_a_full_fake_score_is_a_copy_that_learns_under_a_frozen_teacher() -> None:
    teacher = network()
    scores = Scores.full(teacher, schedule=SCHEDULE)
    assert torch.equal(scores.fake(X, T, LABELS), scores.teacher(X, T, LABELS))
    given = X.clone().requires_grad_()
    scores.eps_real(given, T, LABELS).sum().backward()
    assert given.grad is not None
    assert bool(given.grad.any()), "the gradient goes through the teacher"
    assert all(weight.grad is None for weight in teacher.parameters())
    scores.eps_fake(X, T, LABELS).sum().backward()
    assert all(weight.grad is not None for weight in scores.weights.parameters())
    exact = MixtureDenoiser(SCHEDULE, torch.zeros(1, 2))
    assert Scores.full(exact, fake=network(), schedule=SCHEDULE).frozen is None


def test_one_module_in_two_roles() -> None:
    teacher = network()
    before = teacher(X, T, LABELS)
    scores = Scores.lora(teacher, targets=("given", "layers.*"), rank=2, schedule=SCHEDULE)
    assert torch.equal(scores.eps_fake(X, T, LABELS), before)
    with torch.no_grad():
        for weight in scores.weights.parameters():
            weight.add_(0.3)
    assert torch.equal(scores.eps_real(X, T, LABELS), before)
    assert not torch.allclose(scores.eps_fake(X, T, LABELS), before)
    # What the teacher was asked in between does not leave the adapters off.
    scores.eps_fake(X, T, LABELS).sum().backward()
    assert all(weight.grad is not None for weight in scores.weights.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def test_anybodys_switch_will_do() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extra, self.on = nn.Parameter(torch.tensor(2.0)), True

        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return x + self.extra * self.on

        @contextmanager
        def off(self) -> Iterator[None]:
            self.on = False
            yield
            self.on = True

    own = Own()
    scores = Scores.switched(own, own.off, nn.ParameterList([own.extra]), schedule=SCHEDULE, frozen=own)
    torch.testing.assert_close(scores.eps_fake(X, T) - scores.eps_real(X, T), torch.full_like(X, 2.0))
    assert scores.frozen is not None
    assert scores.frozen.names == []


def test_the_fingerprint_is_of_what_does_not_learn() -> None:
    teacher = network()
    frozen = FrozenNetwork(teacher.requires_grad_(False))
    before = frozen.fingerprint()
    assert before == FrozenNetwork(network().requires_grad_(False)).fingerprint()
    with torch.no_grad():
        teacher.out.bias.add_(1.0)
    assert frozen.fingerprint() != before


def test_directions() -> None:
    real, fake = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    torch.testing.assert_close(vsd(real, fake, torch.tensor([[2.0]])), torch.tensor([[1.0, -2.0]]))
    assert torch.equal(vsd(real, fake), sds(real, fake))
    assert not bool(vsd(real, real).any())
