from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import positions
from tests.losses import invariants
from tests.losses.invariants import logits

BATCH = 6
MAPS = logits(BATCH, 3, 2, 2, seed=1), logits(BATCH, 3, 4, 3, seed=2)
SECOND = logits(BATCH, 5, 2, 2, seed=3), logits(BATCH, 5, 4, 3, seed=4)
TOKENS = logits(BATCH, 4, 6, seed=5), logits(BATCH, 4, 8, seed=6)


def _fsp(student, teacher, student_second, teacher_second, **options):
    return positions.gram(student, teacher, student_second=student_second, teacher_second=teacher_second, **options)


def _three(*given, **options):
    return positions.self_attention_relations(given[:3], given[3:], relation_heads=2, **options)


PER_SAMPLE = {
    "gram": (positions.gram, MAPS),
    "gram_sum": (partial(positions.gram, per_row="sum"), MAPS),
    "gram_normalised": (partial(positions.gram, normalise=True), MAPS),
    "fsp": (_fsp, (*MAPS, *SECOND)),
}
PER_TOKEN = {
    "affinity": (positions.affinity, TOKENS),
    "relations_1": (positions.self_attention_relations, TOKENS),
    "relations_2": (partial(positions.self_attention_relations, relation_heads=2), TOKENS),
    "relations_3x2": (
        _three,
        (TOKENS[0], TOKENS[0] * 0.3, TOKENS[0].flip(-1).cos(), TOKENS[1], TOKENS[1].sin(), TOKENS[1].flip(0)),
    ),
}
ALL = PER_SAMPLE | PER_TOKEN


def _gram(first, second):
    """Loops over channels and positions, on nested lists [channels][positions]."""
    count = len(first[0])
    return [[math.fsum(a[p] * b[p] for p in range(count)) / count for b in second] for a in first]


def _flat(sample):
    return sample.flatten(1).tolist()


def _relation(tokens, heads):
    """Probabilities [heads][query][key] of one sample, tokens [n][width]."""
    width = len(tokens[0]) // heads
    out = []
    for h in range(heads):
        part = [token[h * width : (h + 1) * width] for token in tokens]
        rows = []
        for query in part:
            scores = [math.fsum(a * b for a, b in zip(query, key)) / math.sqrt(width) for key in part]
            top = max(scores)
            weights = [math.exp(x - top) for x in scores]
            rows.append([w / math.fsum(weights) for w in weights])
        out.append(rows)
    return out


def _relation_reference(student, teacher, heads):
    values = []
    for s, t in zip(student.tolist(), teacher.tolist()):
        first, second = _relation(t, heads), _relation(s, heads)
        values.append(
            [
                math.fsum(p * math.log(p / q) for h in range(heads) for p, q in zip(first[h][i], second[h][i]) if p)
                / heads
                for i in range(len(s))
            ]
        )
    return values


def _affinity_reference(student, teacher):
    def cosines(tokens):
        norms = [math.sqrt(math.fsum(x * x for x in token)) for token in tokens]
        return [
            [math.fsum(a * b for a, b in zip(p, q)) / (m * n) for q, n in zip(tokens, norms)]
            for p, m in zip(tokens, norms)
        ]

    return [
        [math.fsum((a - b) ** 2 for a, b in zip(p, q)) / len(p) for p, q in zip(cosines(s), cosines(t))]
        for s, t in zip(student.tolist(), teacher.tolist())
    ]


def _reference(name, inputs):
    if name == "affinity":
        return _affinity_reference(*inputs)
    if name.startswith("relations"):
        heads = 1 if name == "relations_1" else 2
        half = len(inputs) // 2
        return sum(np.array(_relation_reference(s, t, heads)) for s, t in zip(inputs[:half], inputs[half:]))
    values = []
    for sample in range(BATCH):
        maps = [_flat(x[sample]) for x in inputs]
        student, teacher = maps[:2]
        first = _gram(student, maps[2] if name == "fsp" else student)
        second = _gram(teacher, maps[3] if name == "fsp" else teacher)
        first, second = [x for row in first for x in row], [x for row in second for x in row]
        if name == "gram_normalised":
            first, second = ([x / math.sqrt(math.fsum(y * y for y in g)) for x in g] for g in (first, second))
        total = math.fsum((a - b) ** 2 for a, b in zip(first, second))
        values.append(total if name == "gram_sum" else total / len(first))
    return values


@pytest.mark.parametrize("name", ALL)
class TestAll:
    def test_reference(self, name):
        loss, inputs = ALL[name]
        np.testing.assert_allclose(
            loss(*inputs, reduction="none").numpy(), _reference(name, inputs), rtol=1e-10, atol=1e-13
        )

    def test_gradient(self, name):
        loss, inputs = ALL[name]
        invariants.check_gradient(loss, *[x[:2] for x in inputs], wrt=tuple(range(len(inputs))))

    def test_zero_at_match(self, name):
        loss, inputs = ALL[name]
        if name == "fsp":
            inputs = (inputs[0], inputs[0], inputs[2], inputs[2])
        elif name == "relations_3x2":
            inputs = (*inputs[:3], *inputs[:3])
        else:
            inputs = (inputs[0], inputs[0])
        invariants.check_zero_at_match(loss, *[x.clone() for x in inputs])

    def test_contract(self, name):
        loss, inputs = ALL[name]
        invariants.check_contract(loss, *inputs)

    def test_half(self, name):
        loss, inputs = ALL[name]
        if name in ("gram", "gram_sum", "fsp"):
            # Cubic gradients of features of 10^4 are beyond float16 itself; float32 carries them.
            for scale, dtype in ((5.0, torch.float16), (1e4, torch.bfloat16), (1e4, torch.float32)):
                value, grad = invariants.gradient(loss, *[(x * scale).to(dtype) for x in inputs])
                assert torch.isfinite(value)
                assert torch.isfinite(grad).all()
        else:
            invariants.check_half(loss, *[x * 5e3 for x in inputs])


@pytest.mark.parametrize("name", PER_TOKEN)
class TestTokens:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding(self, name, side):
        """Padded to any side with garbage: the same values, and not a trace of the padding."""
        loss, inputs = PER_TOKEN[name]
        plain, plain_grad = invariants.gradient(loss, *inputs, reduction="none")
        for garbage in invariants.GARBAGE:
            junk = [torch.full_like(x[:, :2], garbage) for x in inputs]
            parts = [(j, x) if side == "left" else (x, j) for j, x in zip(junk, inputs)]
            padded = [torch.cat(pair, 1) for pair in parts]
            mask = torch.ones(BATCH, 6, dtype=torch.bool)
            real = slice(2, None) if side == "left" else slice(0, 4)
            mask[:, slice(0, 2) if side == "left" else slice(4, None)] = False
            values, grad = invariants.gradient(loss, *padded, mask=mask, reduction="none")
            torch.testing.assert_close(values[:, real], plain)
            torch.testing.assert_close(grad[:, real], plain_grad)
            assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))
            assert torch.equal(values[~mask], torch.zeros_like(values[~mask]))

    def test_samples_of_unequal_length(self, name):
        loss, inputs = PER_TOKEN[name]
        lengths = [4, 2, 1, 0, 3, 4]
        mask = torch.tensor([[i < n for i in range(4)] for n in lengths])
        together = loss(*inputs, mask=mask, reduction="sum")
        alone = sum(loss(*[x[i : i + 1, :n] for x in inputs], reduction="sum") for i, n in enumerate(lengths) if n)
        torch.testing.assert_close(together, alone)


def test_affinity_of_maps():
    student, teacher = logits(2, 3, 2, 4, seed=7), logits(2, 5, 2, 4, seed=8)
    values = positions.affinity(student, teacher, axis=1, reduction="none")
    assert values.shape == (2, 2, 4)
    flat = positions.affinity(student.flatten(2).mT, teacher.flatten(2).mT, reduction="none")
    torch.testing.assert_close(values.flatten(1), flat)


def test_gram_of_tokens_is_gram_of_maps():
    tokens = [x.flatten(2).mT for x in MAPS]
    torch.testing.assert_close(positions.gram(*tokens, axis=-1), positions.gram(*MAPS))


def test_relation_heads_match_attention_of_unequal_widths():
    """Two heads are the mean of the one-head losses of the halves."""
    student, teacher = TOKENS
    halves = [
        positions.self_attention_relations(student[..., a : a + 3], teacher[..., b : b + 4], reduction="none")
        for a, b in ((0, 0), (3, 4))
    ]
    both = positions.self_attention_relations(student, teacher, relation_heads=2, reduction="none")
    torch.testing.assert_close(both, (halves[0] + halves[1]) / 2)


def test_wrong_inputs_name_the_key():
    for call, key in (
        (lambda: positions.gram(MAPS[0], SECOND[0]), "Gram"),
        (lambda: positions.gram(*MAPS, student_second=SECOND[0]), "both or neither"),
        (lambda: positions.gram(*MAPS, student_second=SECOND[1], teacher_second=SECOND[1]), "positions"),
        (lambda: positions.gram(*MAPS, axis=0), "axis"),
        (lambda: positions.gram(*MAPS, per_row="max"), "per_row"),
        (lambda: positions.affinity(TOKENS[0], TOKENS[1][:, :2]), "positions"),
        (lambda: positions.self_attention_relations(*TOKENS, relation_heads=3), "relation_heads"),
        (lambda: positions.self_attention_relations([TOKENS[0]], [TOKENS[1]] * 2), "relations"),
        (lambda: positions.self_attention_relations(TOKENS[0], TOKENS[1][:, :2]), "tokens"),
    ):
        with pytest.raises(UserError, match=key):
            call()


@pytest.mark.parametrize("name", ALL)
def test_nan_that_counts_is_not_hidden(name):
    loss, inputs = ALL[name]
    student = inputs[0].clone()
    student[2].view(-1)[1] = float("nan")
    assert loss(student, *inputs[1:]).isnan()
