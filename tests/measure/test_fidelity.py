"""Fidelity against scipy, closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn.neighbors import NearestNeighbors

from limbeck.errors import UserError
from limbeck.measure import agreement, cka, cosine, fidelity, fidelity_summary, js, kl, neighbour_overlap


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(60, 8, generator=generator), torch.randn(60, 8, generator=generator)


def test_divergences_agree_with_scipy(pair):
    teacher, student = pair
    p, q = (values.double().softmax(dim=-1).numpy() for values in pair)
    assert kl(teacher, student) == pytest.approx(stats.entropy(p, q, axis=1).mean())
    assert kl(teacher, student) != pytest.approx(kl(student, teacher))
    assert js(teacher, student) == pytest.approx(np.square(jensenshannon(p, q, axis=1)).mean())
    assert agreement(teacher, student) == np.mean(p.argmax(-1) == q.argmax(-1))
    assert kl(teacher, teacher + 3) == pytest.approx(0, abs=1e-12)
    assert js(teacher, teacher) == pytest.approx(0, abs=1e-12)


def test_divergences_at_the_edges():
    teacher, student = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert kl(teacher, student) == pytest.approx(math.log(2))
    assert kl(student, teacher) == math.inf
    far = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert js(*far) == pytest.approx(math.log(2))
    assert kl(*far) == pytest.approx(1e4)
    with pytest.raises(UserError, match="student logits"):
        kl(teacher, torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(UserError, match="teacher's shape"):
        agreement(torch.zeros(2, 3), torch.zeros(2, 4))


def test_cka_by_definition_in_both_forms(pair):
    generator = torch.Generator().manual_seed(1)
    for x, y in (pair, (pair[0][:5], torch.randn(5, 30, generator=generator))):
        a, b = (values.double().numpy() for values in (x, y))
        centre = np.eye(len(a)) - 1 / len(a)
        k, m = (centre @ values @ values.T @ centre for values in (a, b))
        wanted = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
        assert cka(x, y) == pytest.approx(wanted)


def test_cka_sees_through_rotation_scale_and_shift(pair):
    x, y = pair
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))
    assert cka(x, x @ turn * 1e-20 + 0) == pytest.approx(1, abs=1e-6)
    assert cka(x, x @ turn * 100 + 7) == pytest.approx(1, abs=1e-6)
    assert cka(x, x @ turn, unbiased=True) == pytest.approx(1, abs=1e-6)
    assert cka(x, torch.ones(60, 3)) == 0.0
    assert cka(x.reshape(60, 2, 2, 2), y) == cka(x, y)


def test_unbiased_cka_of_unrelated_features_is_about_zero():
    generator = torch.Generator().manual_seed(3)
    pairs = [[torch.randn(20, 200, generator=generator) for _ in range(2)] for _ in range(30)]
    assert np.mean([cka(*one) for one in pairs]) > 0.8
    assert abs(np.mean([cka(*one, unbiased=True) for one in pairs])) < 0.02


def test_cosine_by_hand():
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    student = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 0.0]])
    assert cosine(teacher, student) == pytest.approx(1 / 3)


def test_neighbours_agree_with_scikit_learn_at_any_chunk(pair, monkeypatch):
    near = [
        NearestNeighbors(n_neighbors=10, metric="cosine").fit(values).kneighbors(return_distance=False)
        for values in (pair[0].double().numpy(), pair[1].double().numpy())
    ]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert neighbour_overlap(*pair) == pytest.approx(wanted)
    monkeypatch.setattr(fidelity, "SCORES_AT_ONCE", 7 * 60)
    assert neighbour_overlap(*pair) == pytest.approx(wanted)
    assert neighbour_overlap(pair[0], pair[0] * 2) == 1.0
    assert neighbour_overlap(pair[0][:4], pair[1][:4], k=10) == 1.0
    with pytest.raises(UserError, match="at least 2"):
        neighbour_overlap(pair[0][:1], pair[1][:1])


def test_the_summary_takes_what_both_have(pair):
    teacher, student = pair
    found = fidelity_summary({"logits": teacher, "embedding": teacher}, {"logits": student, "mid": student})
    assert found == {"agreement": agreement(*pair), "kl": kl(*pair), "js": js(*pair)}
    narrow = fidelity_summary({"embedding": teacher}, {"embedding": student[:, :4]})
    assert set(narrow) == {"cka", "neighbour_overlap"}
