"""Training on good samples: rates that fall on plateaus, early stops, the best epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import Distiller, OneClassRecipe, Plateau, fit, fit_good
from limbeck.engine.one_class import mean_loss
from limbeck.errors import UserError
from limbeck.objectives import LevelCosine, TargetMSE
from limbeck.sources import Given
from tests.engine.helpers import Cut, Die

GENERATOR = torch.Generator().manual_seed(0)
DATA = Split(torch.randn(16, 4, generator=GENERATOR), torch.randn(16, 4, generator=GENERATOR), torch.arange(16))
TRAIN, HELD = DATA.subset(range(12)), DATA.subset(range(12, 16))


def distiller(recipe: OneClassRecipe) -> Distiller:
    torch.manual_seed(0)
    return Distiller(nn.Linear(4, 4), TargetMSE(), optimizer=recipe.optimizer)


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def judged(values: list[float], plateau: Plateau, **options: Any) -> tuple[Rates, Any]:
    rates, left = Rates(), list(values)
    recipe = OneClassRecipe(batch_size=12, lr=0.01)
    loader_of = fit(
        distiller(recipe),
        TensorLoader(TRAIN, 12),
        epochs=len(values),
        validate=lambda module: {"loss": left.pop(0)},
        callbacks=[plateau, rates],
        select="loss",
        select_higher=False,
        **options,
    )
    return rates, loader_of


def test_the_rate_falls_after_more_than_patience_epochs_without_progress() -> None:
    rates, history = judged([5, 4, 4, 4, 4, 3, 3], OneClassRecipe(patience=2, stop=10).plateau())
    assert rates.seen == pytest.approx([0.01] * 5 + [0.001] * 2)
    assert history.best_epoch == 6


def test_it_stops_after_that_many_epochs_and_keeps_the_best() -> None:
    rates, history = judged([5, 4, 6, 6, 6, 1, 1], OneClassRecipe(patience=9, stop=3).plateau())
    assert len(rates.seen) == 5
    assert history.best_epoch == 2


def test_a_cosine_ends_at_zero_and_leaves_plateaus_alone() -> None:
    recipe = OneClassRecipe(epochs=8, batch_size=12, lr=0.01, patience=8, stop=8, schedule="cosine")
    rates = Rates()
    fit_good(distiller(recipe), TRAIN, HELD, recipe, summed=False, callbacks=[rates])
    assert rates.seen[0] == pytest.approx(0.01)
    assert rates.seen[4] == pytest.approx(0.005)
    assert rates.seen == sorted(rates.seen, reverse=True)
    assert rates.seen[-1] < 0.0005


def test_nan_is_no_progress() -> None:
    rates, _ = judged([5, float("nan"), float("nan"), 1], OneClassRecipe(patience=9, stop=2).plateau())
    assert len(rates.seen) == 3


def test_a_judge_needs_a_validation() -> None:
    with pytest.raises(UserError, match="validate"):
        fit(distiller(OneClassRecipe()), TensorLoader(TRAIN, 12), epochs=1, callbacks=[OneClassRecipe().plateau()])


def test_good_training_goes_on_after_a_cut_bit_for_bit(tmp_path: Path) -> None:
    recipe = OneClassRecipe(epochs=12, batch_size=4, lr=0.3, patience=1, stop=4)
    whole = distiller(recipe)
    kept = fit_good(whole, TRAIN, HELD, recipe, summed=False)
    where: dict[str, Any] = {"out": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Cut):
        fit_good(distiller(recipe), TRAIN, HELD, recipe, summed=False, callbacks=[Die(13)], **where)
    again = distiller(recipe)
    resumed = fit_good(again, TRAIN, HELD, recipe, summed=False, resume=True, **where)
    assert resumed.best_epoch == kept.best_epoch
    assert resumed.steps == kept.steps
    for a, b in zip(whole.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_mean_loss_does_not_depend_on_batches() -> None:
    plain = distiller(OneClassRecipe())
    values = [mean_loss(plain, DATA, size, summed=False) for size in (3, 16)]
    assert values[0] == pytest.approx(values[1])
    maps = Split({"a": torch.randn(7, 4, 2, 2)}, None, torch.arange(7))
    summing = Distiller(Turn(), LevelCosine(["a"]), Given())
    values = [mean_loss(summing, maps, size) for size in (2, 7)]
    assert values[0] == pytest.approx(values[1])


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, a: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.mix(a)}


def test_good_samples_must_be_held_out() -> None:
    with pytest.raises(UserError, match="held out"):
        fit_good(distiller(OneClassRecipe()), TRAIN, DATA.subset([]), OneClassRecipe())
