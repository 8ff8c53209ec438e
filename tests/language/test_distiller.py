from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.loaders import TensorLoader
from limbeck.engine import fit
from limbeck.language import (
    Decoding,
    OnPolicy,
    Replayed,
    Revised,
    Reviser,
    SequenceDistiller,
    Sequences,
    WindowSpans,
    Writer,
    answer_logits,
)
from limbeck.losses import cross_entropy
from limbeck.objectives import ClippedKL, DataCrossEntropy, SpanProduct
from limbeck.systems.language.multi_granularity.identities import END, PAD, network, texts
from tests.engine.helpers import Cut, Die

DECODING = Decoding(6, END, PAD)


def loader() -> TensorLoader:
    return TensorLoader({"input": texts(12).columns()}, 4, seed=1)


def distiller(writer: Writer | None = None, **options: Any) -> SequenceDistiller:
    objective = DataCrossEntropy() + ClippedKL(k=16) + SpanProduct(WindowSpans(2))
    return SequenceDistiller(network(), objective, network(1), writer=writer, **options)


def replayed() -> Writer:
    return Replayed(Revised(OnPolicy(DECODING), Reviser(DECODING)), capacity=8)


def test_a_step_reads_the_written_text_and_the_data() -> None:
    one = distiller(OnPolicy(DECODING))
    one.trainer = type("T", (), {"estimated_stepping_batches": 4})()  # type: ignore[assignment]
    batch = next(iter(loader()))
    written = one.written(batch)
    signals = one.student_signals(written)
    assert signals["logits"].shape[:2] == written["target"].shape  # type: ignore[union-attr]
    assert signals["data_logits"].shape[:2] == written["data"]["target"].shape  # type: ignore[union-attr]
    assert not torch.equal(written["target"], written["data"]["target"])
    terms = one.objective(signals, one.teacher_signals(written), written)
    assert set(terms) == {"data", "clipped_kl", "floor", "span"}
    data = Sequences.of(batch["input"]).trimmed().batch()
    want = cross_entropy(answer_logits(one.student, data)["logits"], data["target"], mask=data["mask"])
    torch.testing.assert_close(terms["data"], want)
    # Other samples in the next step.
    one.steps_done = 1
    assert one.written(batch)["target"].shape != written["target"].shape or not torch.equal(
        one.written(batch)["target"], written["target"]
    )


def test_the_data_is_read_once_where_it_is_the_text() -> None:
    one = distiller()
    batch = one.plain(next(iter(loader())))
    signals = one.student_signals(batch)
    assert signals["data_logits"] is signals["logits"]


def test_training_learns_logs_and_moves_the_bounds() -> None:
    one = distiller(replayed())
    before = [weight.detach().clone() for weight in one.objective.parameters()]
    history = fit(one, loader(), steps=9, accelerator="cpu", log_every=1)
    assert {"data", "clipped_kl", "span", "kept_mass", "kept_classes", "changed", "text_old"} <= set(history.names())
    moved = [not torch.equal(a, b) for a, b in zip(before, one.objective.parameters())]
    assert any(moved)
    assert not any(name.startswith("teacher") for name in one.state_dict())
    assert all(weight.grad is None for network in one.teacher.modules() for weight in network.parameters())  # type: ignore[union-attr]


def test_resumes_bit_for_bit_with_its_buffer(tmp_path: Path) -> None:
    whole = distiller(replayed())
    fit(whole, loader(), steps=7, accelerator="cpu")
    with pytest.raises(Cut):
        fit(
            distiller(replayed()), loader(), steps=7, accelerator="cpu", out=tmp_path, checkpoint_seconds=0.0,
            callbacks=[Die(4)],
        )  # fmt: skip
    again = distiller(replayed())
    fit(again, loader(), steps=7, accelerator="cpu", out=tmp_path, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
