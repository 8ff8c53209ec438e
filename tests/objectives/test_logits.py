from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives import DIST, DKD, KL, InfoNCE, JensenShannon, LogitObjective, Objective, ReverseKL
from limbeck.objectives.text import parse_objective
from limbeck.signals import SparseLogits

G = torch.Generator().manual_seed(0)
STUDENT, TEACHER, TARGET = torch.randn(6, 4, generator=G), torch.randn(6, 4, generator=G), torch.arange(6) % 4
SQUARED: dict[str, Any] = {"temperature": 2.0, "scale": "squared"}


@pytest.mark.parametrize(
    ("objective", "name", "expected"),
    [
        (KL(2.0), "kl", losses.forward_kl(STUDENT, TEACHER, **SQUARED)),
        (KL(2.0, scale="none"), "kl", losses.forward_kl(STUDENT, TEACHER, temperature=2.0, scale="none")),
        (ReverseKL(2.0), "reverse_kl", losses.reverse_kl(STUDENT, TEACHER, **SQUARED)),
        (JensenShannon(0.3, 2.0), "jensen_shannon", losses.jensen_shannon(STUDENT, TEACHER, beta=0.3, **SQUARED)),
        (DKD(temperature=2.0), "dkd", losses.decoupled_kd(STUDENT, TEACHER, TARGET, beta=8.0, temperature=2.0)),
        (
            DIST(temperature=2.0),
            "dist",
            losses.dist(STUDENT, TEACHER, inter_weight=2.0, intra_weight=2.0, temperature=2.0),
        ),
    ],
)
def test_a_name_over_its_loss(objective: Objective, name: str, expected: torch.Tensor) -> None:
    batch = {"target": TARGET, "id": torch.arange(6)}
    found = objective({"logits": STUDENT}, {"logits": TEACHER}, batch)
    assert list(found) == [name]
    torch.testing.assert_close(found[name], expected)


def test_another_label_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"kl shapes: given student \[6, 4\], teacher \[6, 3\].*one label space"):
        KL()({"logits": STUDENT}, {"logits": TEACHER[:, :3]}, {})


def test_options_that_the_loss_does_not_take_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="kl option: given temprature; allowed: temperature"):
        LogitObjective(losses.forward_kl, name="kl", temprature=2.0)


def test_signals_may_have_other_names() -> None:
    objective = KL(student="head", teacher="old_head")
    found = objective({"head": STUDENT}, {"old_head": TEACHER}, {})["kl"]
    torch.testing.assert_close(found, losses.forward_kl(STUDENT, TEACHER))


def test_whether_the_batch_counts_as_a_whole_is_known() -> None:
    assert DIST().batchwise
    assert InfoNCE().batchwise
    assert LogitObjective(losses.dist_intra, name="intra").batchwise
    assert not KL().batchwise
    assert not DKD().batchwise


def test_text_reads_the_same_objectives() -> None:
    objective = parse_objective("0.1 * cross_entropy + 0.9 * kl(temperature=linear(1, 4))")
    found = objective({"logits": STUDENT}, {"logits": TEACHER}, {"target": TARGET})
    torch.testing.assert_close(found["kl"], 0.9 * losses.forward_kl(STUDENT, TEACHER))
    for wrong in (
        "kl(",
        "klx",
        "kl(temprature=2)",
        "__import__('os')",
        "kl + 2",
        "0.5",
        "9**9",
        "kl * 'a'",
        "'a' * 99",
    ):
        with pytest.raises(UserError, match="objective|kl option"):
            parse_objective(wrong)


ESTIMATED = {"kl": KL, "reverse_kl": ReverseKL, "jensen_shannon": JensenShannon}


@pytest.mark.parametrize("name", ESTIMATED)
def test_estimators_behind_one_name(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(6, (3, 4), generator=generator)
    mask = torch.rand(3, 4, generator=generator) > 0.3
    batch = {"id": torch.arange(3), "target": target, "mask": mask}
    for form in ("k1", "k3"):
        one = parse_objective(f'{name}(temperature=2, estimator="{form}")')
        assert one.needs.target
        ours, theirs = (x.div(2).log_softmax(-1).gather(-1, target[..., None])[..., 0] for x in (student, teacher))
        value = getattr(losses, {"kl": "sampled_forward_kl"}.get(name, f"sampled_{name}"))(
            ours, theirs, form=form, mask=mask
        )
        found = one({"logits": student}, {"logits": teacher}, batch)
        torch.testing.assert_close(found, {name: 4 * value})
        known = ESTIMATED[name](estimator=form, teacher="log_probs")
        logs = teacher.log_softmax(-1).gather(-1, target[..., None])[..., 0]
        want = ESTIMATED[name](estimator=form)({"logits": student}, {"logits": teacher}, batch)
        torch.testing.assert_close(known({"logits": student}, {"log_probs": logs}, batch), want)
        warm = ESTIMATED[name](temperature=2, estimator=form, teacher="log_probs")
        with pytest.raises(UserError, match="temperature: given 2"):
            warm({"logits": student}, {"log_probs": logs}, batch)
        with pytest.raises(UserError, match="with a top-k teacher"):
            one({"logits": student}, {"logits": SparseLogits.from_dense(teacher, 2)}, batch)
    topk = parse_objective(f'{name}(estimator="topk", k=3)')
    want = ESTIMATED[name]()({"logits": student}, {"logits": SparseLogits.from_dense(teacher, 3)}, batch)
    for given in (teacher, SparseLogits.from_dense(teacher, 5)):
        torch.testing.assert_close(topk({"logits": student}, {"logits": given}, batch), want)
    assert not topk.needs.target
    assert "estimator=topk, k=3" in repr(topk)


def test_estimator_mistakes() -> None:
    with pytest.raises(UserError, match="estimator: given k2; allowed: full, topk, k1, k3"):
        KL(estimator="k2")
    with pytest.raises(UserError, match="k: given None; allowed: a number of classes"):
        KL(estimator="topk")
    with pytest.raises(UserError, match="k: given 3; allowed: None"):
        ReverseKL(k=3)
    with pytest.raises(UserError, match="per_row"):
        KL(per_row="mean", estimator="k1")
    with pytest.raises(UserError, match="samples: given data"):
        JensenShannon(samples="data")
