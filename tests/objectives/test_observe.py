"""Numbers that an objective notes for the log without making them part of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, fit
from limbeck.objectives import CrossEntropy, Needs, Objective, total
from limbeck.signals import Batch, Signals


class Noting(Objective):
    needs = Needs(student="logits")

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        logits = student["logits"]
        assert isinstance(logits, Tensor)
        self.observe(largest=logits.max())
        return {"square": logits.square().mean()}


def test_what_parts_observe_is_found_through_sums_and_scales_and_is_no_term() -> None:
    logits = torch.tensor([[1.0, 3.0]], requires_grad=True)
    objective = CrossEntropy() + 0.5 * Noting()
    assert objective.observed() == {}
    terms = objective({"logits": logits}, {}, {"id": torch.arange(1), "target": torch.tensor([0])})
    assert set(terms) == {"cross_entropy", "square"}
    assert float(total(terms).detach()) == pytest.approx(2.126928 + 2.5, abs=1e-5)
    observed = objective.observed()
    assert set(observed) == {"largest"}
    assert float(observed["largest"]) == 3
    assert not observed["largest"].requires_grad


def test_a_distiller_logs_what_was_observed() -> None:
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    data = {"input": torch.randn(6, 3), "target": torch.zeros(6, dtype=torch.int64)}
    largest = float(student(data["input"]).max())
    loader = TensorLoader(data, 6, shuffle=False)
    history = fit(Distiller(student, Noting()), loader, epochs=2, log_every=1, accelerator="cpu")
    assert history.curve("largest")["y"][0] == pytest.approx(largest)
    assert len(history.by_epoch("largest")) == 2
