from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.data.loaders import TensorLoader
from limbeck.engine import fit
from limbeck.errors import UserError
from limbeck.experiment.base import Claim, load_experiment
from limbeck.language import Decoding, FunctionWordSpans, Replayed, Revised, WindowSpans
from limbeck.losses import forward_kl, span_product
from limbeck.objectives import KL
from limbeck.sources import Cached
from limbeck.systems.language.multi_granularity import identities
from limbeck.systems.language.multi_granularity.docstrings import ARMS, Docstrings
from limbeck.systems.language.multi_granularity.identities import END, PAD, TOKENS, network, texts
from limbeck.systems.language.multi_granularity.method import mgsr, mgsr_objective, scrg
from limbeck.systems.language.multi_granularity.own_text import OwnText

DECODING = Decoding(6, END, PAD)
WHERE = "limbeck.systems.language.multi_granularity.experiment"


# Exact checks.


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("continues_itself", 0.0),
        ("padding_changes_nothing", 1e-5),
        ("copying_costs_nothing", 1e-4),
        ("whole_window_is_forward_kl", 1e-6),
        ("whole_support", 1e-7),
    ],
)
def test_identities(name: str, tolerance: float) -> None:
    assert getattr(identities, name)() <= tolerance


# The loss.


def test_the_objective_is_the_papers_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher, data = (torch.randn(2, 4, TOKENS, generator=generator) for _ in range(3))
    target = torch.randint(3, TOKENS, (2, 4), generator=generator)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    batch: dict[str, Any] = {"target": target, "mask": mask, "data": {"target": target, "mask": mask}}
    objective = mgsr_objective(
        WindowSpans(4), token=KL(), data_weight=2.0, token_weight=3.0, span_weight=5.0, span_k=None
    )
    found = objective({"logits": student, "data_logits": data}, {"logits": teacher}, batch)
    counted = [(0, i) for i in range(4)] + [(1, 0), (1, 1)]
    p, q, d = (x.double().softmax(-1) for x in (teacher, student, data))
    supervised = -sum(math.log(d[b, i, target[b, i]]) for b, i in counted) / 6
    kl = sum(float((p[b, i] * (p[b, i] / q[b, i]).log()).sum()) for b, i in counted) / 6
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0)]
    spans = sum(float((p[b, i] * p[b, i + 1] - q[b, i] * q[b, i + 1]).square().sum()) for b, i in pairs) / 4
    assert float(found["data"]) == pytest.approx(2 * supervised, rel=1e-4)
    assert float(found["kl"]) == pytest.approx(3 * kl, rel=1e-4)
    assert float(found["span"]) == pytest.approx(5 * spans, rel=1e-4)
    assert set(mgsr_objective(None)({"logits": student, "data_logits": data}, {"logits": teacher}, batch)) == {
        "data", "clipped_kl", "floor",
    }  # fmt: skip
    with pytest.raises(UserError, match="weights"):
        mgsr_objective(None, data_weight=0, token_weight=0)


def test_the_span_loss_is_tiny_beside_the_kl() -> None:
    """The sheet's pitfall: with a vocabulary of real size it has hardly a gradient at weight 1."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 8, 2000, generator=generator, requires_grad=True)
    teacher = 2 * torch.randn(4, 8, 2000, generator=generator)
    norms = [torch.autograd.grad(loss(student, teacher), student)[0].norm() for loss in (forward_kl, span_product)]
    assert norms[1] < 0.1 * norms[0]


# The training.


def test_it_trains_a_transformers_student() -> None:
    distiller = mgsr(network(), network(1), DECODING, WindowSpans(2), k=16, log_gradient_norms=True)
    loader = TensorLoader({"input": texts(12).columns()}, 6)
    history = fit(distiller, loader, steps=4, accelerator="cpu", log_every=1)
    assert {"data", "clipped_kl", "span", "gradient_norm/span", "divergence"} <= set(history.names())
    student = distiller.finish()
    assert not student.training


def test_corrections_come_closer_to_the_teacher() -> None:
    from limbeck.data.views import view_seeds
    from limbeck.language import Reviser, answer_logits, without_answers
    from limbeck.losses import cross_entropy
    from limbeck.sources import Live

    student, teacher = network(), network(1)
    given, views = without_answers(texts(64)), view_seeds(0, 0, torch.arange(64))
    raw = DECODING(student, given, views)
    mended = Reviser(DECODING, rounds=3)(student, Live(teacher, forward=answer_logits), raw, views)

    def nll(one: Any) -> float:
        batch = one.batch()
        return float(cross_entropy(answer_logits(teacher, batch)["logits"], batch["target"], mask=batch["mask"]))

    assert nll(mended) < nll(raw) - 0.5


def test_writers() -> None:
    assert isinstance(scrg(DECODING), Revised)
    assert isinstance(scrg(DECODING, replay=8), Replayed)
    reviser = scrg(DECODING, rounds=3, rule="random", first=2).reviser  # type: ignore[attr-defined]
    assert (reviser.rounds, reviser.rule, reviser.first) == (3, "random", 2)


# The experiments.


def test_arms_differ_in_what_they_say_they_do() -> None:
    found = Docstrings("smoke")
    objectives = {name: found.objective(arm.setting) for name, arm in ARMS.items()}
    names = {name: type(found.writer(arm.setting)).__name__ for name, arm in ARMS.items()}
    assert names["gkd"] == "OnPolicy"
    assert names["seqkd"] == names["teacher-samples"] == "StoredText"
    assert names["scrg"] == names["full"] == "Revised"
    assert found.writer(ARMS["random-place"].setting).reviser.rule == "random"  # type: ignore[attr-defined]
    assert any(True for _ in objectives["full"].parameters())
    assert not any(True for _ in objectives["top-p"].parameters())
    span = next(part for part in objectives["full"].modules() if hasattr(part, "spans"))
    assert isinstance(span.spans, FunctionWordSpans)


def test_texts_keep_a_trace() -> None:
    found = load_experiment(f"{WHERE}:texts", "smoke")
    found.prepare()
    trace = found.run("revised", 0).notes["trace"]
    assert len(trace) == 6
    assert "becomes" in trace[0]["change"]
    assert found.run("revised", 0).metrics == found.run("revised", 0).metrics


def test_the_real_model_answers_from_the_cache_on_fixed_sentences_and_live_on_own_text() -> None:
    found = OwnText("smoke")
    found.prepare()
    assert isinstance(found.source(OwnText.arms["kl-data"].setting), Cached)
    live = [found.source(OwnText.arms[name].setting) for name in ("gkd", "scrg", "full", "teacher-samples")]
    assert all(one is found.teacher for one in live), "half a gigabyte once"
    lower = {claim.metric: claim.better for claim in OwnText.claims if isinstance(claim, Claim)}
    assert lower.pop("distinct_2") == "higher"
    assert set(lower.values()) == {"lower"}


def test_own_text_of_a_real_model() -> None:
    found = load_experiment(f"{WHERE}:own_text", "smoke")
    found.prepare()
    outcome = found.run("random-place", 0)
    assert outcome.notes["trace"]
    assert outcome.metrics["changed"] > 0
    assert {"kl", "reverse_kl", "teacher_nll", "kl_own", "kl_teacher", "excess_error"} <= set(outcome.metrics)
    assert len(outcome.curves["kl"]) == found.steps["smoke"]  # type: ignore[attr-defined]
    # The teacher itself writes as the teacher would.
    same = found.assess(found.teacher)  # type: ignore[attr-defined]
    assert abs(same["reverse_kl"]) + abs(same["kl_own"]) < 1e-4
