"""The plateau schedule against the published rule, step by step, and in a real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import Distiller, OptimizerSettings, Plateau, fit
from limbeck.errors import UserError
from limbeck.objectives import CrossEntropy
from tests.engine.helpers import loader, network


class FakeTrainer:
    def __init__(self) -> None:
        self.optimizers: list[Any] = [torch.optim.SGD([torch.zeros(1)], lr=1.0)]
        self.lr_scheduler_configs: list[Any] = []
        self.should_stop = False


class FakeModule:
    def __init__(self) -> None:
        self.trainer = FakeTrainer()

    @property
    def rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])


def feed(plateau: Plateau, module: Any, values: list[float]) -> list[float]:
    rates = []
    for epoch, value in enumerate(values):
        plateau.look({"accuracy": value}, epoch + 1, module)
        rates.append(module.rate)
    return rates


def test_ten_stale_epochs_halve_then_eight_are_waited() -> None:
    module: Any = FakeModule()
    rates = feed(Plateau(), module, [0.5] + [0.5009] * 30)
    # The first epoch is a gain; 0.0009 is within the band of a tenth of a point.
    assert rates[:10] == [1.0] * 10
    assert rates[10:18] == [0.5] * 8
    assert rates[18:26] == [0.25] * 8
    assert rates[26] == 0.125
    assert not module.trainer.should_stop
    feed(Plateau(), module, [])
    plateau = Plateau(stop_after=3, patience=100)
    feed(plateau, module, [0.5] * 4)
    assert not module.trainer.should_stop
    feed(plateau, module, [0.5])
    assert module.trainer.should_stop


def test_a_gain_starts_the_count_anew_and_nan_is_none() -> None:
    module: Any = FakeModule()
    plateau = Plateau(patience=3, wait=0)
    assert feed(plateau, module, [0.1, 0.1, 0.1, 0.3, float("nan"), 0.3]) == [1.0] * 6
    assert feed(plateau, module, [0.3]) == [0.5]


def test_too_many_cuts_end_the_training() -> None:
    module: Any = FakeModule()
    feed(Plateau(patience=1, wait=0, most_cuts=2), module, [0.5] * 3)
    assert not module.trainer.should_stop
    module = FakeModule()
    feed(Plateau(patience=1, wait=0, most_cuts=2), module, [0.5] * 4)
    assert module.trainer.should_stop


def test_it_governs_a_training_and_its_state_is_resumed(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def run(validate: Any, **options: Any) -> Distiller:
        settings = OptimizerSettings("sgd", lr=0.1, schedule="constant")
        distiller = Distiller(network(1), CrossEntropy(), optimizer=settings)
        fit(
            distiller,
            loader(),
            epochs=8,
            validate=validate,
            callbacks=[Plateau(patience=2, wait=0, factor=0.1)],
            accelerator="cpu",
            **options,
        )
        return distiller

    rates: list[float] = []

    def standing(module: Any) -> dict[str, float]:
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return {"accuracy": 0.5}

    def cut(module: Any) -> dict[str, float]:
        if module.steps_done > 12:
            raise Stop
        return {"accuracy": 0.5}

    straight = run(standing)
    # Stale from the second epoch on: cut after the third, and at every later one.
    assert rates == pytest.approx([0.1, 0.1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    with pytest.raises(Stop):
        run(cut, out=tmp_path)
    resumed = run(standing, out=tmp_path, resume=True)
    for ours, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="factor"):
        Plateau(factor=2.0)
    with pytest.raises(UserError, match="plateau"):
        Plateau("nll").look({"accuracy": 1.0}, 1, FakeModule())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="validate"):
        fit(Distiller(network(1), CrossEntropy()), loader(), epochs=1, callbacks=[Plateau()], accelerator="cpu")
