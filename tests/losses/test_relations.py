from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import relations
from tests.losses import invariants
from tests.losses.invariants import logits

ROWS = 6
STUDENT, TEACHER = logits(ROWS, 4, seed=1), logits(ROWS, 7, seed=2)
STUDENT_KEYS, TEACHER_KEYS = logits(ROWS, 4, seed=3), logits(ROWS, 7, seed=4)

LOSSES = {
    "rkd_distance": relations.rkd_distance,
    "rkd_distance_self": partial(relations.rkd_distance, include_self=True, delta=0.3),
    "rkd_angle": relations.rkd_angle,
    "rkd_angle_self": partial(relations.rkd_angle, include_self=True, delta=0.3),
    "similarity_preserving": relations.similarity_preserving,
    "cka": relations.cka,
    "cka_debiased": partial(relations.cka, debiased=True),
    "similarity_distribution": partial(relations.similarity_distribution, temperature=0.3),
    "similarity_distribution_dot": partial(
        relations.similarity_distribution,
        temperature=9.0,
        teacher_temperature=20.0,
        normalise=False,
        symmetric=True,
    ),
}
SCALE_FREE = [name for name in LOSSES if name != "similarity_distribution_dot"]


def _dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def _distance(a, b):
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b)))


def _huber(x, delta):
    return 0.5 * x * x if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)


def _rkd_distance(s, t, partners, delta):
    n = len(s)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    mean_s, mean_t = (math.fsum(_distance(x[i], x[j]) for i, j in pairs) / len(pairs) for x in (s, t))
    return [
        math.fsum(
            _huber(_distance(s[i], s[j]) / mean_s - _distance(t[i], t[j]) / mean_t, delta) for j in range(n) if j != i
        )
        / partners
        for i in range(n)
    ]


def _cosine_at(x, i, j, k):
    first = [a - b for a, b in zip(x[j], x[i])]
    second = [a - b for a, b in zip(x[k], x[i])]
    return _dot(first, second) / math.sqrt(_dot(first, first) * _dot(second, second))


def _rkd_angle(s, t, arms, delta):
    n = len(s)
    return [
        math.fsum(
            _huber(_cosine_at(s, i, j, k) - _cosine_at(t, i, j, k), delta)
            for j in range(n)
            for k in range(n)
            if len({i, j, k}) == 3
        )
        / arms
        for i in range(n)
    ]


def _similarity_preserving(s, t):
    def rows(x):
        gram = [[_dot(a, b) for b in x] for a in x]
        return [[g / math.sqrt(_dot(row, row)) for g in row] for row in gram]

    return [math.fsum((a - b) ** 2 for a, b in zip(p, q)) / len(s) for p, q in zip(rows(s), rows(t))]


def _cka(s, t):
    """The covariance form, which never builds a Gram matrix."""
    s, t = np.array(s), np.array(t)
    s, t = s - s.mean(0), t - t.mean(0)
    return 1 - np.linalg.norm(s.T @ t) ** 2 / (np.linalg.norm(s.T @ s) * np.linalg.norm(t.T @ t))


def _hsic_unbiased(k, m):
    """Song et al. 2012, equation 5, term by term."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    total = (
        np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return total / (n * (n - 3))


def _cka_debiased(s, t):
    k, m = np.array(s) @ np.array(s).T, np.array(t) @ np.array(t).T
    return 1 - _hsic_unbiased(k, m) / math.sqrt(_hsic_unbiased(k, k) * _hsic_unbiased(m, m))


def _divergence(target, model):
    def probabilities(scores):
        top = max(scores)
        parts = [math.exp(x - top) for x in scores]
        return [p / math.fsum(parts) for p in parts]

    return math.fsum(p * math.log(p / q) for p, q in zip(probabilities(target), probabilities(model)))


def _cosine(a, b):
    return _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))


def _similarity_distribution(s, t):
    n = len(s)
    return [
        _divergence(
            [_cosine(t[i], t[j]) / 0.3 for j in range(n) if j != i],
            [_cosine(s[i], s[j]) / 0.3 for j in range(n) if j != i],
        )
        for i in range(n)
    ]


def _similarity_dot(s, t):
    n = len(s)
    # Self-similarity is symmetric, so both directions are one and the same.
    return [
        _divergence(
            [_dot(t[i], t[j]) / 20 for j in range(n) if j != i],
            [_dot(s[i], s[j]) / 9 for j in range(n) if j != i],
        )
        for i in range(n)
    ]


REFERENCES = {
    "rkd_distance": lambda s, t: _rkd_distance(s, t, ROWS - 1, 1.0),
    "rkd_distance_self": lambda s, t: _rkd_distance(s, t, ROWS, 0.3),
    "rkd_angle": lambda s, t: _rkd_angle(s, t, (ROWS - 1) * (ROWS - 2), 1.0),
    "rkd_angle_self": lambda s, t: _rkd_angle(s, t, ROWS * ROWS, 0.3),
    "similarity_preserving": _similarity_preserving,
    "similarity_distribution": _similarity_distribution,
    "similarity_distribution_dot": _similarity_dot,
}


@pytest.mark.parametrize("name", LOSSES)
class TestAll:
    def test_reference(self, name):
        values = LOSSES[name](STUDENT, TEACHER, reduction="none")
        if name.startswith("cka"):
            expected = {"cka": _cka, "cka_debiased": _cka_debiased}[name](STUDENT.tolist(), TEACHER.tolist())
            assert values.mean().item() == pytest.approx(expected, rel=1e-11)
        else:
            expected = REFERENCES[name](STUDENT.tolist(), TEACHER.tolist())
            np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10, atol=1e-13)

    def test_gradient(self, name):
        invariants.check_gradient(LOSSES[name], STUDENT, TEACHER, wrt=(0, 1))

    def test_zero_at_match(self, name):
        if name == "similarity_distribution_dot":
            loss = partial(relations.similarity_distribution, normalise=False, temperature=9.0, symmetric=True)
        else:
            loss = LOSSES[name]
        invariants.check_zero_at_match(loss, STUDENT, STUDENT.clone())

    def test_contract(self, name):
        invariants.check_contract(LOSSES[name], STUDENT, TEACHER, batchwise=True)

    def test_rotation_changes_nothing(self, name):
        rotation = torch.linalg.qr(logits(4, 4, seed=9))[0]
        before = LOSSES[name](STUDENT, TEACHER, reduction="none")
        torch.testing.assert_close(LOSSES[name](STUDENT @ rotation, TEACHER, reduction="none"), before)

    def test_splitting_is_not_silent(self, name):
        """The docstring says that pairs matter, and they do."""
        assert "Batch-wise: yes" in getattr(LOSSES[name], "func", LOSSES[name]).__doc__
        student, teacher = torch.cat([STUDENT, STUDENT_KEYS]), torch.cat([TEACHER, TEACHER_KEYS])
        whole = LOSSES[name](student, teacher, reduction="sum")
        parts = [LOSSES[name](student[p], teacher[p], reduction="sum") for p in (slice(0, 5), slice(5, None))]
        assert abs(whole - sum(parts)) > 1e-6

    def test_coincident_points(self, name):
        student, teacher = STUDENT.clone(), TEACHER.clone()
        student[1], teacher[2] = student[0], teacher[0]
        for given in (
            (student, teacher),
            (torch.zeros_like(student), teacher),
            (student, torch.ones_like(teacher)),
        ):
            value, grad = invariants.gradient(LOSSES[name], *given)
            assert torch.isfinite(value)
            assert torch.isfinite(grad).all()

    def test_few_rows(self, name):
        for n in (0, 1, 2, 3):
            if name == "cka_debiased":
                continue
            value, grad = invariants.gradient(LOSSES[name], STUDENT[:n], TEACHER[:n])
            assert torch.isfinite(value)
            assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", SCALE_FREE)
def test_half(name):
    invariants.check_half(LOSSES[name], STUDENT * 1e4, TEACHER * -1e4)
    invariants.check_half(LOSSES[name], STUDENT * 1e-3, TEACHER * 1e4)


@pytest.mark.parametrize("name", SCALE_FREE)
def test_scale_changes_nothing(name):
    before = LOSSES[name](STUDENT, TEACHER, reduction="none")
    torch.testing.assert_close(LOSSES[name](STUDENT * 1e-3, TEACHER * 1e5, reduction="none"), before)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_of_a_constant_is_one(debiased):
    constant = torch.full((ROWS, 3), 0.1, dtype=torch.float32) + torch.tensor([1.0, 2.0, 3.0])
    value, grad = invariants.gradient(partial(relations.cka, debiased=debiased), constant, TEACHER.float())
    assert value.item() == pytest.approx(1.0)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_debiased_cka_is_fair_to_wide_noise():
    """Unrelated wide features: plain CKA calls them alike, the debiased one does not."""
    first, second = logits(16, 400, seed=11), logits(16, 400, seed=12)
    assert relations.cka(first, second) < 0.1
    assert relations.cka(first, second, debiased=True) > 0.9


def test_debiased_cka_needs_four_rows():
    with pytest.raises(UserError, match="debiased"):
        relations.cka(STUDENT[:3], TEACHER[:3], debiased=True)


@pytest.mark.parametrize("symmetric", [False, True])
def test_similarity_distribution_with_keys(symmetric):
    values = relations.similarity_distribution(
        STUDENT,
        TEACHER,
        student_keys=STUDENT_KEYS,
        teacher_keys=TEACHER_KEYS,
        temperature=0.5,
        symmetric=symmetric,
        reduction="none",
    )
    s, t, sk, tk = (x.tolist() for x in (STUDENT, TEACHER, STUDENT_KEYS, TEACHER_KEYS))
    expected = [
        _divergence([_cosine(a, b) / 0.5 for b in tk], [_cosine(a2, b) / 0.5 for b in sk]) for a, a2 in zip(t, s)
    ]
    if symmetric:
        back = [
            _divergence([_cosine(a, b) / 0.5 for b in t], [_cosine(a2, b) / 0.5 for b in s]) for a, a2 in zip(tk, sk)
        ]
        expected = [(a + b) / 2 for a, b in zip(expected, back)]
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)


def test_similarity_distribution_keys_are_masked_with_their_queries():
    def loss(student, teacher, student_keys, teacher_keys, **options):
        return relations.similarity_distribution(
            student, teacher, student_keys=student_keys, teacher_keys=teacher_keys, symmetric=True, **options
        )

    invariants.check_contract(loss, STUDENT, TEACHER, STUDENT_KEYS, TEACHER_KEYS, batchwise=True)
    invariants.check_gradient(loss, STUDENT, TEACHER, STUDENT_KEYS, TEACHER_KEYS, wrt=(0, 1, 2, 3))


def test_similarity_distribution_key_mask_drops_keys():
    keep = torch.tensor([True, True, False])
    keys = logits(3, 4, seed=5), logits(3, 7, seed=6)
    dirty = [k.clone() for k in keys]
    for k in dirty:
        k[2] = float("nan")
    given = relations.similarity_distribution(
        STUDENT, TEACHER, student_keys=dirty[0], teacher_keys=dirty[1], key_mask=keep
    )
    cut = relations.similarity_distribution(STUDENT, TEACHER, student_keys=keys[0][:2], teacher_keys=keys[1][:2])
    torch.testing.assert_close(given, cut)


def test_wrong_inputs_name_the_key():
    for call, key in (
        (lambda: relations.rkd_distance(STUDENT, TEACHER[:2]), "batch"),
        (lambda: relations.similarity_distribution(STUDENT, TEACHER, student_keys=STUDENT), "teacher_keys"),
        (
            lambda: relations.similarity_distribution(
                STUDENT, TEACHER, student_keys=STUDENT[:2], teacher_keys=TEACHER[:2], symmetric=True
            ),
            "symmetric",
        ),
        (lambda: relations.cka(STUDENT, TEACHER, mask=torch.ones(2, dtype=torch.bool)), "mask"),
    ):
        with pytest.raises(UserError, match=key):
            call()


@pytest.mark.parametrize("name", LOSSES)
def test_nan_that_counts_is_not_hidden(name):
    student = STUDENT.clone()
    student[2, 1] = float("nan")
    assert LOSSES[name](student, TEACHER).isnan()
