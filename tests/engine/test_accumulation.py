from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, Interrupted, OptimizerSettings, fit
from limbeck.engine.accumulation import Window
from limbeck.losses import cross_entropy
from limbeck.losses.reduce import counting
from limbeck.objectives import CrossEntropy
from limbeck.sources import EMA
from tests.engine.helpers import INPUT, TARGET, distiller, equal, loader, states

DESCENT = OptimizerSettings("sgd", lr=0.5, weight_decay=0.0, schedule="constant")
MASK = torch.arange(50) % 7 > torch.arange(50) // 10


def test_means_note_how_many_rows_they_are_of() -> None:
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    mask = torch.tensor([True, True, False, True, False, True])
    with counting() as counts:
        cross_entropy(logits, target, mask=mask)
        cross_entropy(logits, target, mask=~mask)
        cross_entropy(logits, target, reduction="sum")
        cross_entropy(logits, target, denominator=3)
    assert [int(count) for count in counts] == [4, 2]
    cross_entropy(logits, target)
    assert len(counts) == 2


def test_a_window_is_the_mean_over_all_rows() -> None:
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    values = torch.tensor([1.0, 3.0, 5.0, 10.0], dtype=torch.float64)
    window, seen = Window(), {}
    for piece in (values[:3], values[3:], values[:0]):
        mean = (weight * piece).sum() / max(len(piece), 1)
        (window.weigh(mean, [torch.tensor(len(piece))], 3) / 3).backward()
        seen = window.mean({"loss": mean.detach()})
    window.close([weight])
    assert float(weight.grad) == pytest.approx(19 / 4)  # type: ignore[arg-type]
    assert float(seen["loss"]) == pytest.approx(2 * 19 / 4)
    window.close([weight])
    assert float(weight.grad) == pytest.approx(19 / 4), "closed once"  # type: ignore[arg-type]


def step(size: int, pieces: int, transform: Any = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    one = Distiller(nn.Linear(8, 4).double(), CrossEntropy(), optimizer=DESCENT)
    columns = {"input": INPUT.double(), "target": TARGET, "mask": MASK}
    batches = TensorLoader(columns, size, shuffle=False, transform=transform)
    fit(one, batches, steps=1, accelerator="cpu", accumulate_grad_batches=pieces)
    return dict(one.student.state_dict())


def test_masked_rows_and_given_denominators() -> None:
    whole = step(50, 1)
    counted = int(MASK.sum())

    def denominator(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "denominator": torch.tensor(float(counted))}

    for size, pieces, transform in ((20, 3, None), (10, 5, None), (20, 3, denominator), (50, 1, denominator)):
        for name, value in step(size, pieces, transform).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-13)


class PressInside(Callback):
    """Ctrl-C between the micro-batches of a step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 0:
            signal.raise_signal(signal.SIGINT)


def test_nothing_is_saved_inside_a_step(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "accelerator": "cpu", "accumulate_grad_batches": 2, "out": tmp_path}
    whole, again = (distiller(lambda student: EMA(student, 0.5)) for _ in range(2))
    fit(whole, loader(), epochs=3, accelerator="cpu", accumulate_grad_batches=2)
    cut = distiller(lambda student: EMA(student, 0.5))
    with pytest.raises(Interrupted, match="step 3"):
        fit(cut, loader(), checkpoint_seconds=0.0, callbacks=[PressInside()], **options)
    fit(again, loader(), resume=True, **options)
    assert equal(states(again), states(whole))
