from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.scores import Scores
from limbeck.diffusion.unet import SmallUNet
from limbeck.engine import OptimizerSettings, fit
from limbeck.errors import LimbeckError, UserError
from limbeck.systems.diffusion.sid_lsg.experiment import EXPERIMENTS, IDENTITIES
from limbeck.systems.diffusion.sid_lsg.guidance import Guidance
from limbeck.systems.diffusion.sid_lsg.method import PUBLISHED, SiD, few_steps
from limbeck.systems.diffusion.sid_lsg.method import __file__ as method_file
from limbeck.systems.diffusion.sid_lsg.sharing import Adversarial, encoder_logits

SCHEDULE = DiscreteSchedule.scaled_linear()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
RATES = {name: OptimizerSettings("adam", lr=1e-3, weight_decay=0.0, betas=(0.0, 0.999)) for name in PUBLISHED}


def network(seed: int = 0) -> MLPDenoiser:
    torch.manual_seed(seed)
    return MLPDenoiser(2, 16, 2, classes=3).eval()


def method(steps: int = 4, **options: Any) -> SiD:
    scores = Scores.full(network(), fake=network(7), schedule=SCHEDULE, null=3)
    return SiD(few_steps(network(), SCHEDULE, steps=steps), scores, (2,), **{"optimizers": RATES, **options})


def turns(module: SiD, batch: dict[str, Any] | None = None, seed: int = 1) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {turn.player: turn for turn in module.turns(batch or {"input": LABELS})}


@pytest.mark.parametrize("exact", IDENTITIES, ids=lambda exact: exact.text)
def test_identities(exact: Any) -> None:
    assert exact.check() <= exact.tolerance


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_a_step_is_the_published_one(alpha: float) -> None:
    module = method(1, alpha=alpha, null_share=0.0)
    found = turns(module)

    def guided(one: Any, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        null = one(x, t, torch.full_like(labels, 3))
        made: Tensor = null + 1.5 * (one(x, t, labels) - null)
        return made

    torch.manual_seed(1)
    first, second = LABELS[:4], LABELS[4:]
    sigma, alpha_start = SCHEDULE.sigma(625), SCHEDULE.alpha(625)

    def made(labels: Tensor) -> Tensor:
        z = sigma * torch.randn(4, 2)
        torch.randint(1, ())
        x: Tensor = (z - sigma * module.generator.network(z, torch.full((4,), 625), labels)) / alpha_start
        return x

    x = made(first).detach()
    t, noise = torch.randint(20, 980, (4,)), torch.randn(4, 2)
    eps = guided(module.scores.fake, SCHEDULE.add_noise(x, noise, t), t, first)
    torch.testing.assert_close(found["fake"].terms["denoising"], (eps - noise).square().sum() / 4)

    x = made(second)
    t, noise = torch.randint(20, 980, (4,)), torch.randn(4, 2)
    noised = SCHEDULE.add_noise(x, noise, t)
    real, fake = (
        SCHEDULE.x0(guided(one, noised, t, second), noised, t) for one in (module.scores.teacher, module.scores.fake)
    )
    w = (x - real).detach().abs().mean(1, keepdim=True).clip(1e-5)
    expected = ((real - fake) * ((real - x) - alpha * (real - fake)) / w).sum() / 4
    torch.testing.assert_close(found["generator"].terms["sid"], expected)
    weights = list(module.generator.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found["generator"].terms["sid"], weights, allow_unused=True),
        torch.autograd.grad(expected, weights, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_generators_turn_goes_through_both_networks_and_moves_neither() -> None:
    module = method()
    turns(module)["generator"].terms["sid"].backward()
    assert all(weight.grad is None for weight in module.scores.weights.parameters())
    teacher: Any = module.scores.teacher
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(weight.requires_grad for weight in module.scores.weights.parameters()), "held for that pass alone"
    sid, vsd = (gradient_on_generator(method(loss=loss)) for loss in ("sid", "vsd"))
    assert torch.nn.functional.cosine_similarity(sid, vsd, dim=0) < 0.99, "no gradient through the networks: VSD"


def gradient_on_generator(module: SiD) -> Tensor:
    loss = next(iter(turns(module)["generator"].terms.values()))
    weights = list(module.generator.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def test_the_fake_scores_turn_moves_the_fake_score_alone() -> None:
    module = method()
    turns(module)["fake"].terms["denoising"].backward()
    assert all(weight.grad is None for weight in module.generator.parameters())
    assert any(weight.grad is not None for weight in module.scores.weights.parameters())


class Asked(nn.Module):
    """Counts rows and notes the conditions that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rows, self.labels = network(), 0, set()

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.rows += len(x)
        self.labels |= set(condition.tolist())
        made: Tensor = self.inner(x, t, condition)
        return made


@pytest.mark.parametrize(
    ("guidance", "teacher", "fake", "seen_by_fake"),
    [
        (Guidance.lsg(1.0), 4, 8, {0, 1, 2}),
        (Guidance.lsg(2.0), 8, 16, {0, 1, 2, 3}),
        (Guidance.zero_cfg(), 4, 8, {3}),
        (Guidance.anti_cfg(), 4, 12, {0, 1, 2, 3}),
    ],
    ids=["k=1", "lsg", "zero", "anti"],
)
def test_guidance_policies(guidance: Guidance, teacher: int, fake: int, seen_by_fake: set[int]) -> None:
    asked, followed = Asked(), Asked()
    scores = Scores.full(asked, fake=followed, schedule=SCHEDULE, null=3)
    module = SiD(few_steps(network(), SCHEDULE), scores, (2,), guidance=guidance, null_share=0.0, optimizers=RATES)
    turns(module)
    assert (asked.rows, followed.rows) == (teacher, fake)
    assert followed.labels == seen_by_fake
    assert (3 in asked.labels) == (guidance.teacher != 1)


def test_null_conditions_are_trained_where_the_fake_score_is_guided() -> None:
    assert method(guidance=Guidance.lsg(1.5)).null_share == 0.1
    assert method(guidance=Guidance.anti_cfg()).null_share == 0.1
    assert method(guidance=Guidance.lsg(1.0)).null_share == 0.0
    assert method(guidance=Guidance.zero_cfg()).null_share == 0.0


@pytest.mark.parametrize(("matched", "steps"), [("mixture", {1, 2, 3, 4}), ("last", {4}), ("chain", {4})])
def test_what_is_matched(matched: str, steps: set[int]) -> None:
    module = method(matched=matched)
    called = []
    inner = module.generator.network.forward

    def counted(*args: Any) -> Any:
        called.append(torch.is_grad_enabled())
        return inner(*args)

    module.generator.network.forward = counted  # type: ignore[method-assign]
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        called.clear()
        module.sample(LABELS[:4])
        seen.add(len(called))
        assert sum(called) == (4 if matched == "chain" else 1)
    assert seen == steps


def test_bad_samples_are_left_out_counted_and_all_of_them_stop_the_training() -> None:
    module = method(1, guidance=Guidance.lsg(1.0))
    with torch.no_grad():
        module.scores.fake.condition.weight[1] = torch.nan  # type: ignore[attr-defined]
    found = turns(module, {"input": torch.tensor([0, 1, 2, 0, 2, 1, 0, 0])})
    assert module.dropped == 2
    assert all(bool(torch.isfinite(value)) for turn in found.values() for value in turn.terms.values())
    found["fake"].terms["denoising"].backward()
    module.gradients_ready("fake")
    assert all(bool(torch.isfinite(w.grad).all()) for w in module.scores.weights.parameters() if w.grad is not None)
    with pytest.raises(LimbeckError, match="every sample"):
        turns(module, {"input": torch.ones(4, dtype=torch.long)})


def unet(seed: int = 0) -> SmallUNet:
    torch.manual_seed(seed)
    return SmallUNet(8, (1, 2), classes=3).eval()


def adversarial(**options: Any) -> SiD:
    scores = Scores.full(unet(), fake=unet(), schedule=SCHEDULE, null=3)
    return SiD(
        few_steps(unet(), SCHEDULE), scores, (1, 8, 8), guidance=Guidance.zero_cfg(), optimizers=RATES,
        adversarial=Adversarial(**options),
    )  # fmt: skip


def test_the_discriminator_is_the_encoder_and_has_no_weights_of_its_own() -> None:
    network_, x = unet(), torch.randn(2, 1, 8, 8)
    t, labels = torch.tensor([5, 500]), torch.tensor([0, 1])
    logits = encoder_logits(network_, x, t, labels)
    assert logits.shape == (2, 1, 4, 4)
    torch.testing.assert_close(logits, network_.encode(x, t, labels).hidden.mean(1, keepdim=True))
    module = adversarial()
    count = sum(weight.numel() for weight in unet().parameters())
    assert sum(weight.numel() for weight in module.parameters()) == 2 * count


def test_the_adversarial_terms_and_their_times() -> None:
    batch = {"input": LABELS, "real": torch.randn(4, 1, 8, 8)}
    module = adversarial(adversarial_from=2, generator_from=1)
    assert set(turns(module, batch)) == {"fake"}
    module.steps_done = 1
    assert set(turns(module, batch)["generator"].terms) == {"sid"}
    module.steps_done = 2
    found = turns(module, batch)
    assert set(found["fake"].terms) == {"denoising", "discriminator"}
    assert set(found["generator"].terms) == {"sid", "adversarial"}
    # An undecided discriminator costs log 2 on either side.
    with torch.no_grad():
        for weight in module.scores.weights.middle.parameters():  # type: ignore[union-attr]
            weight.zero_()
    assert float(turns(module, batch)["fake"].terms["discriminator"]) > 0
    for missing in ({"input": LABELS}, {"input": LABELS, "real": batch["real"][:2]}):
        with pytest.raises(UserError, match="real"):
            turns(module, missing)


def test_refusals() -> None:
    with pytest.raises(UserError, match="steps"):
        few_steps(network(), SCHEDULE, steps=0)
    with pytest.raises(UserError, match="times"):
        method(times=(20, 1001))
    with pytest.raises(UserError, match="matched"):
        method(matched="all")
    with pytest.raises(UserError, match="null"):
        SiD(few_steps(network(), SCHEDULE), Scores.full(network(), schedule=SCHEDULE), (2,))
    SiD(few_steps(network(), SCHEDULE), Scores.full(network(), schedule=SCHEDULE), (2,), guidance=Guidance.lsg(1.0))
    with pytest.raises(UserError, match="prompt"):
        turns(method(), {"input": LABELS[:1]})


def test_training_keeps_an_average_and_the_teacher(tmp_path: Any) -> None:
    module = method(2)
    bank = ConditionBank(torch.arange(3), torch.tensor(3))
    history = fit(module, bank.loader(8, copies=20), steps=4, seed=0, log_every=1, accelerator="cpu")
    assert {"generator/sid", "generator/gap", "fake/denoising"} <= set(history.names())
    assert isinstance(module.finish(), Generator)
    assert PUBLISHED["generator"].betas == (0.0, 0.999)


def test_arms_are_what_the_sheet_names() -> None:
    images, plane = EXPERIMENTS["images"].arms, EXPERIMENTS["plane"].arms
    named = {
        "lsg-1.5",
        "lsg-3",
        "zero-cfg",
        "anti-cfg",
        "zero-cfg-gan",
        "vsd-4",
        "sid-4-last",
        "sid-1",
        "sid-2",
        "sid-4",
    }
    assert named <= set(plane)
    assert {"lsg-1.5", "zero-cfg", "zero-cfg-gan", "vsd"} <= set(images)
    assert {f"teacher-{steps}" for steps in (1, 2, 4)} <= set(images) & set(plane)


def test_the_pages_example_runs() -> None:
    page = Path(method_file).parent / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["images"].shape[1:] == (1, 16, 16)
