from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.diffusion.noise import DiscreteSchedule, EDMSchedule
from limbeck.diffusion.score_distiller import ScoreDistiller, agreement
from limbeck.diffusion.scores import Scores
from limbeck.engine import OptimizerSettings, Turn, fit
from limbeck.errors import UserError
from limbeck.losses import denoising, toward_target
from limbeck.schedules import HalfLife

SCHEDULE = DiscreteSchedule.scaled_linear()
SETTINGS = {name: OptimizerSettings("adam", lr=1e-3, schedule="constant") for name in ("generator", "fake")}
BANK = ConditionBank(torch.arange(3), torch.tensor(3))


class Method(ScoreDistiller):
    def turns(self, batch: Any) -> Iterator[Turn]:
        condition = batch["input"]
        x = self.generator(self.noise(condition), condition)
        noised = self.noised(x.detach())
        fake = self.scores.eps_fake(noised.x, noised.t, condition)
        yield Turn("fake", {"denoising": denoising(fake, noised.noise)})
        real = self.scores.eps_real(noised.x, noised.t, condition)
        yield Turn("generator", {"vsd": toward_target(x, (real - fake).detach())})


def network(seed: int = 0) -> MLPDenoiser:
    torch.manual_seed(seed)
    return MLPDenoiser(2, 16, 2, classes=3).eval()


def method(**options: Any) -> Method:
    teacher = network()
    scores = Scores.full(teacher, schedule=SCHEDULE, null=3)
    return Method(Generator(network(), SCHEDULE), scores, (2,), **{"optimizers": SETTINGS, **options})


def test_both_learn_the_teacher_does_not_and_the_average_lags() -> None:
    module = method(average=0.9)
    teacher: Any = module.scores.teacher
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    start = module.finish(averaged=False)
    fit(module, BANK.loader(8, copies=20), steps=6, seed=0, accelerator="cpu")
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    last, averaged = module.finish(averaged=False), module.finish()
    z, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    outputs = [one(z, labels) for one in (start, averaged, last)]
    assert float((outputs[1] - outputs[0]).norm()) < float((outputs[2] - outputs[0]).norm())
    assert not torch.equal(outputs[1], outputs[2])
    assert not any(weight.requires_grad for weight in averaged.parameters())
    assert torch.equal(method(average=None).finish()(z, labels), start(z, labels))


def test_the_teacher_and_the_average_are_not_in_the_weights_of_the_checkpoint() -> None:
    module = method(average=HalfLife(10, 100), steps=100)
    kinds = {name.partition(".")[0] for name in module.state_dict()}
    assert kinds == {"generator", "fake_weights"}
    assert set(module.sources) == {"teacher", "average"}


def test_times_noise_and_null() -> None:
    module = method(times=(20, 40))
    torch.manual_seed(0)
    x = torch.randn(500, 2)
    noised = module.noised(x)
    assert (int(noised.t.min()), int(noised.t.max())) == (20, 39)
    torch.testing.assert_close(noised.x, SCHEDULE.add_noise(x, noised.noise, noised.t))
    assert int(module.noised(x, (0, 1000)).t.max()) > 900
    labels = torch.zeros(1000, dtype=torch.long)
    share = float((module.some_null(labels, 0.1) == 3).float().mean())  # type: ignore[union-attr]
    assert 0.07 < share < 0.13
    coins = [bool((module.some_null(labels[:5], 0.5, per="batch") == 3).all()) for _ in range(40)]  # type: ignore[union-attr]
    mixed = [len(set(module.some_null(labels[:5], 0.5, per="batch").tolist())) for _ in range(20)]  # type: ignore[union-attr]
    assert 8 < sum(coins) < 32
    assert set(mixed) == {1}


def test_conditions_may_be_mappings() -> None:
    module = method()
    module.scores.null = {"text": torch.full((2,), 9.0)}
    given = {"text": torch.zeros(4, 2)}
    dropped: Any = module.some_null(given, 1.0)
    assert bool((dropped["text"] == 9).all())
    assert module.noise(given).shape == (4, 2)


def test_agreement() -> None:
    real = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    watched = agreement(real, real, real - real)
    assert float(watched["cosine"]) == pytest.approx(1.0)
    assert float(watched["direction"]) == 0.0


def test_refusals() -> None:
    shared = network()
    with pytest.raises(UserError, match="shares weights"):
        Method(Generator(shared, SCHEDULE), Scores.full(shared, schedule=SCHEDULE), (2,), optimizers=SETTINGS)
    with pytest.raises(UserError, match="optimizers"):
        method(optimizers={"generator": SETTINGS["generator"]})
    with pytest.raises(UserError, match="times"):
        method(times=(20, 1001))
    with pytest.raises(UserError, match="per"):
        method().some_null(torch.zeros(2, dtype=torch.long), 0.5, per="row")
    scores = Scores.full(network(), schedule=EDMSchedule())
    with pytest.raises(UserError, match="times"):
        Method(Generator(network(), SCHEDULE), scores, (2,), optimizers=SETTINGS)
