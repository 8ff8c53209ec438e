from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses.noise_contrastive import crd, crd_log_normaliser
from tests.losses import invariants
from tests.losses.invariants import logits

ROWS, WIDTH, K = 6, 4, 5
STUDENT, TEACHER = logits(ROWS, WIDTH, seed=1), logits(ROWS, WIDTH, seed=2)
NEGATIVES, SHARED = logits(ROWS, K, WIDTH, seed=3), logits(K, WIDTH, seed=4)
LOG_NOISE = logits(ROWS, 1 + K, seed=5).log_softmax(-1)
IDS = torch.tensor([7, 3, 7, 9, 3, 7])
DATASET = 1000
S, T, N = STUDENT.tolist(), TEACHER.tolist(), NEGATIVES.tolist()


def _cosine(a, b):
    dot, aa, bb = (math.fsum(x * y for x, y in zip(p, q)) for p, q in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


def _row(anchor, positive, negatives, noise, z=1.0, temperature=0.5):
    """As the paper prints it: probabilities first. ``noise`` is p_n of the positive and of each negative."""

    def h(other, p):
        score = math.exp(_cosine(anchor, other) / temperature) / z
        return score / (score + len(negatives) * p)

    return -math.log(h(positive, noise[0])) - math.fsum(math.log(1 - h(n, p)) for n, p in zip(negatives, noise[1:]))


def _in_batch(s, t, keep):
    return [
        _row(s[i], t[i], [t[j] for j in keep(i)], [1 / max(len(keep(i)), 1)] * (1 + len(keep(i))))
        for i in range(len(s))
    ]


LOSSES = {
    "in_batch": partial(crd, temperature=0.5),
    "in_batch_symmetric": partial(crd, temperature=0.5, symmetric=True),
    "shared": partial(crd, temperature=0.5, negatives=SHARED, log_noise=-math.log(DATASET)),
    "dot": partial(crd, temperature=9.0, normalise=False, log_normaliser=1.3),
}


class TestReference:
    def test_paper_form(self):
        values = crd(STUDENT, TEACHER, NEGATIVES, log_noise=-math.log(DATASET), temperature=0.5, reduction="none")
        expected = [_row(S[i], T[i], N[i], [1 / DATASET] * (1 + K)) for i in range(ROWS)]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-8)

    def test_constant_normaliser(self):
        log_z = crd_log_normaliser(STUDENT, NEGATIVES, dataset_size=DATASET, temperature=0.5)
        scores = [math.exp(_cosine(S[i], n) / 0.5) for i in range(ROWS) for n in N[i]]
        z = math.fsum(scores) / len(scores) * DATASET
        assert log_z.item() == pytest.approx(math.log(z), rel=1e-12)
        values = crd(
            STUDENT,
            TEACHER,
            NEGATIVES,
            log_noise=-math.log(DATASET),
            log_normaliser=log_z,
            temperature=0.5,
            reduction="none",
        )
        expected = [_row(S[i], T[i], N[i], [1 / DATASET] * (1 + K), z) for i in range(ROWS)]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-8)

    def test_explicit_noise(self):
        values = crd(STUDENT, TEACHER, NEGATIVES, log_noise=LOG_NOISE, temperature=0.5, reduction="none")
        expected = [_row(S[i], T[i], N[i], LOG_NOISE[i].exp().tolist()) for i in range(ROWS)]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-8)

    def test_shared_negatives(self):
        options = {"log_noise": -math.log(DATASET), "temperature": 0.5, "reduction": "none"}
        each = crd(STUDENT, TEACHER, SHARED.expand(ROWS, -1, -1), **options)
        torch.testing.assert_close(crd(STUDENT, TEACHER, SHARED, **options), each)

    @pytest.mark.parametrize("ids", [None, IDS])
    def test_in_batch(self, ids):
        def keep(i):
            return [j for j in range(ROWS) if j != i and (ids is None or ids[j] != ids[i])]

        values = crd(STUDENT, TEACHER, ids=ids, temperature=0.5, reduction="none")
        np.testing.assert_allclose(values.numpy(), _in_batch(S, T, keep), rtol=1e-8)
        both = crd(STUDENT, TEACHER, ids=ids, temperature=0.5, symmetric=True, reduction="none")
        expected = (np.array(_in_batch(S, T, keep)) + np.array(_in_batch(T, S, keep))) / 2
        np.testing.assert_allclose(both.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_and_contract(name):
    invariants.check_gradient(LOSSES[name], STUDENT, TEACHER, wrt=(0, 1))
    invariants.check_contract(LOSSES[name], STUDENT, TEACHER, batchwise=name != "shared")


def test_given_negatives_split_by_rows():
    def loss(student, teacher, negatives, log_noise, **options):
        return crd(student, teacher, negatives, log_noise=log_noise, **options)

    inputs = (STUDENT, TEACHER, NEGATIVES, LOG_NOISE)
    invariants.check_gradient(loss, *inputs, wrt=(0, 1, 2))
    invariants.check_contract(loss, *inputs)


def test_ids_in_a_masked_batch():
    def loss(student, teacher, ids, **options):
        return crd(student, teacher, ids=ids, symmetric=True, **options)

    invariants.check_contract(loss, STUDENT, TEACHER, IDS, batchwise=True)


def test_half():
    for name in ("in_batch", "in_batch_symmetric"):
        invariants.check_half(LOSSES[name], STUDENT * 5e3, TEACHER * -5e3)
    invariants.check_half(partial(LOSSES["shared"], negatives=SHARED.half()), STUDENT * 5e3, TEACHER * -5e3)
    rows = torch.diag(torch.tensor([100.0, -100.0, 100.0]))
    invariants.check_half(partial(crd, normalise=False, temperature=1.0), rows, rows.flip(0))


def test_wrong_inputs_name_the_key():
    for call, key in (
        (lambda: crd(STUDENT, TEACHER[:, :2]), "keys"),
        (lambda: crd(STUDENT, TEACHER, log_noise=LOG_NOISE), "log_noise"),
        (lambda: crd(STUDENT, TEACHER, NEGATIVES, symmetric=True), "symmetric"),
    ):
        with pytest.raises(UserError, match=key):
            call()
