from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import contrastive
from tests.losses import invariants
from tests.losses.invariants import logits

ROWS, WIDTH = 6, 4
QUERIES, KEYS, QUEUE = (logits(n, WIDTH, seed=seed) for n, seed in ((ROWS, 1), (ROWS, 2), (5, 3)))
TEACHER_QUERIES, TEACHER_KEYS, TEACHER_QUEUE = (logits(n, 7, seed=seed) for n, seed in ((ROWS, 4), (ROWS, 5), (5, 6)))
IDS, QUEUE_IDS = torch.tensor([7, 3, 7, 9, 3, 7]), torch.tensor([3, 1, 2, 7, 1])
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])  # the row of label 2 is alone


def _cosine(a, b):
    dot, aa, bb = (math.fsum(x * y for x, y in zip(p, q)) for p, q in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


def _log_probability(scores, chosen):
    return scores[chosen] - math.log(math.fsum(math.exp(x) for x in scores))


def _info_nce(queries, keys, queue, temperature, ids=None, queue_ids=None):
    values = []
    for i, query in enumerate(queries):
        scores = [_cosine(query, keys[i]) / temperature]
        for j, key in enumerate(keys):
            if j != i and (ids is None or ids[j] != ids[i]):
                scores.append(_cosine(query, key) / temperature)
        for j, key in enumerate(queue):
            if queue_ids is None or queue_ids[j] != ids[i]:
                scores.append(_cosine(query, key) / temperature)
        values.append(-_log_probability(scores, 0))
    return values


def _average(first, second):
    return [(a + b) / 2 for a, b in zip(first, second)]


Q, K, B, TQ, TK, TB = (x.tolist() for x in (QUERIES, KEYS, QUEUE, TEACHER_QUERIES, TEACHER_KEYS, TEACHER_QUEUE))


class TestInfoNCE:
    def test_reference(self):
        values = contrastive.info_nce(QUERIES, KEYS, temperature=0.5, reduction="none")
        np.testing.assert_allclose(values.numpy(), _info_nce(Q, K, [], 0.5), rtol=1e-12)

    def test_reference_with_queue_and_ids(self):
        options = {"queue": QUEUE, "temperature": 0.5, "reduction": "none"}
        values = contrastive.info_nce(QUERIES, KEYS, ids=IDS, queue_ids=QUEUE_IDS, **options)
        expected = _info_nce(Q, K, B, 0.5, IDS.tolist(), QUEUE_IDS.tolist())
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)
        plain = contrastive.info_nce(QUERIES, KEYS, **options)
        np.testing.assert_allclose(plain.numpy(), _info_nce(Q, K, B, 0.5), rtol=1e-12)
        assert (values < plain).any(), "no duplicate was among the negatives, so nothing was tested"

    def test_reference_symmetric(self):
        values = contrastive.info_nce(QUERIES, KEYS, temperature=0.5, symmetric=True, reduction="none")
        expected = _average(_info_nce(Q, K, [], 0.5), _info_nce(K, Q, [], 0.5))
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)

    @pytest.mark.parametrize(
        "options", [{}, {"symmetric": True, "queue": QUEUE}, {"normalise": False, "temperature": 9.0}]
    )
    def test_gradient_and_contract(self, options):
        loss = partial(contrastive.info_nce, **{"temperature": 0.5, **options})
        invariants.check_gradient(loss, QUERIES, KEYS, wrt=(0, 1))
        invariants.check_contract(loss, QUERIES, KEYS, batchwise=True)

    def test_duplicates_in_a_permuted_batch(self):
        def loss(queries, keys, ids, **options):
            return contrastive.info_nce(queries, keys, ids=ids, symmetric=True, **options)

        invariants.check_contract(loss, QUERIES, KEYS, IDS, batchwise=True)

    def test_gradient_reaches_queue_and_temperature(self):
        queue, temperature = (
            QUEUE.clone().requires_grad_(),
            torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
        )
        function = lambda q, t: contrastive.info_nce(QUERIES, KEYS, queue=q, temperature=t)  # noqa: E731
        assert torch.autograd.gradcheck(function, (queue, temperature))

    def test_perfect_pairs_far_from_all_others_cost_nothing(self):
        pairs = torch.eye(ROWS, dtype=torch.float64)
        invariants.check_zero_at_match(partial(contrastive.info_nce, temperature=0.01), pairs, pairs)

    def test_half(self):
        for options in ({}, {"symmetric": True}):
            invariants.check_half(partial(contrastive.info_nce, **options), QUERIES * 5e3, KEYS * -5e3)
        rows = torch.diag(torch.tensor([100.0, -100.0, 100.0]))
        loss = partial(contrastive.info_nce, normalise=False, temperature=1.0)
        invariants.check_half(loss, rows, rows.flip(0))  # logits of +-10^4

    def test_one_row_has_no_negatives(self):
        value, grad = invariants.gradient(contrastive.info_nce, QUERIES[:1], KEYS[:1])
        assert value.item() == 0
        assert torch.equal(grad, torch.zeros_like(grad))


class TestNTXent:
    def test_reference(self):
        views = Q + K
        expected = []
        for i in range(2 * ROWS):
            partner = (i + ROWS) % (2 * ROWS)
            others = [partner, *(j for j in range(2 * ROWS) if j not in (i, partner))]
            expected.append(-_log_probability([_cosine(views[i], views[j]) / 0.5 for j in others], 0))
        values = contrastive.nt_xent(QUERIES, KEYS, reduction="none")
        np.testing.assert_allclose(values.numpy(), _average(expected[:ROWS], expected[ROWS:]), rtol=1e-12)

    def test_ids(self):
        """Two rows with one id: neither view of the one is a negative of the other."""
        views, ids = Q + K, IDS.tolist() * 2
        expected = []
        for i in range(2 * ROWS):
            partner = (i + ROWS) % (2 * ROWS)
            others = [partner, *(j for j in range(2 * ROWS) if ids[j] != ids[i])]
            expected.append(-_log_probability([_cosine(views[i], views[j]) / 0.5 for j in others], 0))
        values = contrastive.nt_xent(QUERIES, KEYS, ids=IDS, reduction="none")
        np.testing.assert_allclose(values.numpy(), _average(expected[:ROWS], expected[ROWS:]), rtol=1e-12)

    def test_gradient_and_contract(self):
        invariants.check_gradient(contrastive.nt_xent, QUERIES, KEYS, wrt=(0, 1))
        invariants.check_contract(contrastive.nt_xent, QUERIES, KEYS, batchwise=True)
        invariants.check_half(contrastive.nt_xent, QUERIES * 5e3, KEYS * -5e3)


def _soft(queries, keys, teacher_queries, teacher_keys, truth, alpha):
    values = []
    for i, (query, teacher_query) in enumerate(zip(queries, teacher_queries)):
        scores = [_cosine(query, key) / 0.5 for key in keys]
        teacher = [_cosine(teacher_query, key) / 0.25 for key in teacher_keys]
        target = [
            alpha * math.exp(_log_probability(teacher, j)) + (1 - alpha) * truth[i][j] / sum(truth[i])
            for j in range(len(keys))
        ]
        values.append(-math.fsum(p * _log_probability(scores, j) for j, p in enumerate(target)))
    return values


class TestSoftInfoNCE:
    loss = staticmethod(partial(contrastive.soft_info_nce, temperature=0.5, teacher_temperature=0.25, alpha=0.3))
    inputs = (QUERIES, KEYS, TEACHER_QUERIES, TEACHER_KEYS)

    def test_reference(self):
        truth = [[int(i == j) for j in range(ROWS)] for i in range(ROWS)]
        values = self.loss(*self.inputs, symmetric=True, reduction="none")
        expected = _average(_soft(Q, K, TQ, TK, truth, 0.3), _soft(K, Q, TK, TQ, truth, 0.3))
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-11)

    def test_reference_with_queue_and_ids(self):
        every = IDS.tolist() + QUEUE_IDS.tolist()
        truth = [[int(a == b) for b in every] for a in IDS.tolist()]
        values = self.loss(
            *self.inputs,
            queue=QUEUE,
            teacher_queue=TEACHER_QUEUE,
            ids=IDS,
            queue_ids=QUEUE_IDS,
            reduction="none",
        )
        np.testing.assert_allclose(values.numpy(), _soft(Q, K + B, TQ, TK + TB, truth, 0.3), rtol=1e-11)

    def test_hard_end_is_info_nce(self):
        options = {"temperature": 0.5, "symmetric": True, "reduction": "none"}
        hard = contrastive.soft_info_nce(*self.inputs, alpha=0.0, **options)
        torch.testing.assert_close(hard, contrastive.info_nce(QUERIES, KEYS, **options))

    def test_no_gradient_where_similarities_agree(self):
        """The value there is the entropy of the teacher's similarities, not zero."""
        loss = partial(contrastive.soft_info_nce, alpha=1.0, temperature=0.5, symmetric=True)
        value, grad = invariants.gradient(loss, QUERIES, KEYS, QUERIES.clone(), KEYS.clone())
        assert value > 0.1
        assert grad.abs().max() < 1e-14

    def test_gradient_and_contract(self):
        for options in ({"symmetric": True}, {"queue": QUEUE, "teacher_queue": TEACHER_QUEUE}):
            loss = partial(self.loss, **options)
            invariants.check_gradient(loss, *self.inputs, wrt=(0, 1, 2, 3))
            invariants.check_contract(loss, *self.inputs, batchwise=True)

    def test_half(self):
        loss = partial(self.loss, queue=QUEUE.half(), teacher_queue=TEACHER_QUEUE.bfloat16())
        invariants.check_half(loss, *[x * 5e3 for x in self.inputs])
        invariants.check_half(partial(self.loss, symmetric=True), *[x * 5e3 for x in self.inputs])

    def test_ids_in_a_masked_batch(self):
        def loss(queries, keys, teacher_queries, teacher_keys, ids, **options):
            return self.loss(queries, keys, teacher_queries, teacher_keys, ids=ids, symmetric=True, **options)

        invariants.check_contract(loss, *self.inputs, IDS, batchwise=True)


class TestSupervisedContrastive:
    def test_reference(self):
        expected = []
        for i, label in enumerate(LABELS.tolist()):
            others = [j for j in range(ROWS) if j != i]
            scores = [_cosine(Q[i], Q[j]) / 0.5 for j in others]
            positives = [n for n, j in enumerate(others) if LABELS[j] == label]
            logs = [_log_probability(scores, n) for n in positives]
            expected.append(-math.fsum(logs) / len(logs) if logs else 0.0)
        values = contrastive.supervised_contrastive(QUERIES, LABELS, temperature=0.5, reduction="none")
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)
        assert expected[3] == 0

    def test_gradient_and_contract(self):
        loss = partial(contrastive.supervised_contrastive, temperature=0.5)
        invariants.check_gradient(loss, QUERIES, LABELS)
        invariants.check_contract(loss, QUERIES, LABELS, batchwise=True)
        invariants.check_half(loss, QUERIES * 5e3, LABELS)

    def test_two_views_with_own_labels_are_nt_xent(self):
        both = contrastive.supervised_contrastive(
            torch.cat([QUERIES, KEYS]), torch.arange(ROWS).repeat(2), temperature=0.5, reduction="none"
        )
        torch.testing.assert_close(both.view(2, ROWS).mean(0), contrastive.nt_xent(QUERIES, KEYS, reduction="none"))

    def test_one_row(self):
        value, grad = invariants.gradient(contrastive.supervised_contrastive, QUERIES[:1], LABELS[:1])
        assert value.item() == 0
        assert torch.equal(grad, torch.zeros_like(grad))


def test_wrong_inputs_name_the_key():
    for call, key in (
        (lambda: contrastive.info_nce(QUERIES, KEYS[:2]), "keys"),
        (lambda: contrastive.info_nce(QUERIES[None], KEYS[None]), "queries"),
        (lambda: contrastive.info_nce(QUERIES, KEYS, queue_ids=QUEUE_IDS), "queue_ids"),
        (lambda: contrastive.info_nce(QUERIES, KEYS, queue=QUEUE, queue_ids=QUEUE_IDS), "ids"),
        (lambda: contrastive.soft_info_nce(*TestSoftInfoNCE.inputs, alpha=1.5), "alpha"),
        (lambda: contrastive.supervised_contrastive(QUERIES, LABELS[:3]), "labels"),
    ):
        with pytest.raises(UserError, match=key):
            call()
