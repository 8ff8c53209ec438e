from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.scores import Scores
from limbeck.engine import OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.systems.diffusion.swiftbrush import identities
from limbeck.systems.diffusion.swiftbrush.experiment import EXPERIMENTS, IDENTITIES
from limbeck.systems.diffusion.swiftbrush.method import ALPHA_T, PUBLISHED, SwiftBrush, one_step
from limbeck.systems.diffusion.swiftbrush.method import __file__ as method_file

SCHEDULE = DiscreteSchedule.scaled_linear()
BANK = ConditionBank(torch.arange(3), torch.tensor(3))


def network(seed: int = 0) -> MLPDenoiser:
    torch.manual_seed(seed)
    return MLPDenoiser(2, 16, 2, classes=3).eval()


def method(kind: str = "lora", **options: Any) -> SwiftBrush:
    shared: Any = {"schedule": SCHEDULE, "null": 3}
    if kind == "lora":
        scores = Scores.lora(network(), targets=("given", "layers.*"), rank=2, **shared)
    else:
        scores = Scores.full(network(), **shared)
    return SwiftBrush(one_step(network(), SCHEDULE), scores, (2,), **{"scale": 1.5, **options})


@pytest.mark.parametrize("exact", IDENTITIES, ids=lambda exact: exact.text)
def test_identities(exact: Any) -> None:
    assert exact.check() <= exact.tolerance


def test_the_released_constant_in_the_generator() -> None:
    assert identities.unit_alpha() == 0.0
    assert pytest.approx(0.06856, abs=1e-5) == ALPHA_T


def turns(module: SwiftBrush, seed: int = 1) -> list[Any]:
    torch.manual_seed(seed)
    return list(module.turns({"input": torch.tensor([0, 1, 2, 0])}))


def by_hand(module: SwiftBrush, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The published step, written out: the generator's samples and gradient on them, the fake score's loss."""
    torch.manual_seed(seed)
    labels, null = torch.tensor([0, 1, 2, 0]), torch.full((4,), 3)
    z = torch.randn(4, 2)
    eps = module.generator.network(z, torch.full((4,), 999), labels)
    x = (z - SCHEDULE.sigma(999) * eps) / SCHEDULE.alpha(999)
    t = torch.randint(20, 981, (4,))
    noised = SCHEDULE.add_noise(x, torch.randn(4, 2), t)
    guided = [
        one(noised, t, null) + 1.5 * (one(noised, t, labels) - one(noised, t, null))
        for one in (module.scores.teacher, module.scores.fake)
    ]  # type: ignore[operator]
    g = (1 - SCHEDULE.abar[t])[:, None] * (guided[0] - guided[1])
    t = torch.randint(0, 1000, (4,))
    noise = torch.randn(4, 2)
    given = null if float(torch.rand(())) < 0.1 else labels
    predicted = module.scores.fake(SCHEDULE.add_noise(x, noise, t), t, given)
    alpha = SCHEDULE.abar[t].sqrt()[:, None]
    return x, g, (alpha * predicted - alpha * noise).square().mean()


def test_a_step_is_the_published_one() -> None:
    module = method()
    with torch.no_grad():
        for weight in module.fake_weights.parameters():
            weight.add_(0.2)
    generator, fake = turns(module)
    x, g, denoising = by_hand(module)
    torch.testing.assert_close(fake.terms["denoising"], denoising)
    torch.testing.assert_close(generator.terms["vsd"], 0.5 * g.square().mean())
    weights = list(module.generator.parameters())
    found = torch.autograd.grad(generator.terms["vsd"], weights, allow_unused=True)
    expected = torch.autograd.grad(x, weights, g.detach() / g.numel(), allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    # The LoRA's turn moves the LoRA alone.
    fake.terms["denoising"].backward()
    assert all(weight.grad is None for weight in weights)
    assert all(weight.grad is not None for weight in module.fake_weights.parameters())


def test_at_the_start_both_scores_agree_and_nothing_moves() -> None:
    generator, _ = turns(method())
    assert float(generator.terms["vsd"]) == 0.0
    assert float(generator.observed["cosine"]) == pytest.approx(1.0)
    unguided, _ = turns(method(fake_scale=1.0))
    assert float(unguided.terms["vsd"]) > 0.0


def test_sds_has_the_noise_for_a_fake_score_and_trains_none() -> None:
    found = turns(method(direction="sds"))
    assert [turn.player for turn in found] == ["generator"]
    assert float(found[0].terms["sds"]) > 0.0


def test_a_bad_sample_is_counted_and_harmless() -> None:
    module = method("full")
    with torch.no_grad():
        module.scores.fake.condition.weight[2] = torch.nan  # type: ignore[attr-defined]
    generator, _ = turns(module)
    assert float(generator.observed["not_finite"]) == 0.25
    assert bool(torch.isfinite(generator.terms["vsd"]))


def test_published_rates_and_refusals() -> None:
    assert (PUBLISHED["generator"].lr, PUBLISHED["fake"].lr) == (1e-6, 1e-3)
    assert all(setting.weight_decay == 0 and setting.schedule == "constant" for setting in PUBLISHED.values())
    with pytest.raises(UserError, match="direction"):
        method(direction="dmd")
    with pytest.raises(UserError, match="null"):
        SwiftBrush(one_step(network(), SCHEDULE), Scores.full(network(), schedule=SCHEDULE), (2,))
    SwiftBrush(
        one_step(network(), SCHEDULE), Scores.full(network(), schedule=SCHEDULE), (2,), scale=1.0, null_share=0.0
    )
    with pytest.raises(UserError, match="zero terminal"):
        one_step(network(), SCHEDULE.zero_terminal())


def test_training_moves_towards_an_exact_teacher() -> None:
    from limbeck.diffusion.analytic import MixtureDenoiser

    exact = MixtureDenoiser(SCHEDULE, torch.tensor([[1.0, 0.0]]), 0.3)
    torch.manual_seed(0)
    fake = MLPDenoiser(2, 32, 2)
    scores = Scores.full(exact, fake=fake, schedule=SCHEDULE, null=1)
    rates = {name: OptimizerSettings("adam", lr=3e-3, weight_decay=0.0, schedule="constant") for name in PUBLISHED}
    module = SwiftBrush(
        one_step(MLPDenoiser(2, 32, 2), SCHEDULE, prediction="x0"), scores, (2,), scale=1.0, null_share=0.0,
        optimizers=rates, average=None,
    )  # fmt: skip
    bank = ConditionBank(torch.zeros(64, dtype=torch.long), torch.tensor(1))

    def error() -> float:
        x = module.finish()(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(500).long())
        return float((x.mean(0) - exact.means[0]).norm())

    before = error()
    fit(module, bank.loader(64), steps=150, seed=0, accelerator="cpu")
    assert error() < 0.5 * before


def test_arms_are_what_the_sheet_names() -> None:
    images, plane = EXPERIMENTS["images"].arms, EXPERIMENTS["plane"].arms
    assert {"none", "swiftbrush", "attention-only", "full-score", "sds", "regression"} <= set(images)
    assert {f"teacher-{steps}" for steps in (1, 4, 25, 100)} <= set(images)
    assert {"fresh-generator", "no-reparametrisation", "slow-score", "vsd-lora", "guidance-2"} <= set(plane)


def test_the_pages_example_runs() -> None:
    page = Path(method_file).parent / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["image"].shape[1:] == (1, 16, 16)
