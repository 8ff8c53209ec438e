"""Ranking losses against loops, the exact properties of Plackett-Luce distillation, and the invariants."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.losses import ranking as r
from limbeck.losses.classification import cross_entropy
from limbeck.losses.divergences import soft_cross_entropy

from . import invariants as check

INF = float("inf")
STUDENT, TEACHER = check.logits(8, 6, seed=1), check.logits(8, 6, seed=2)
TARGET = check.labels(8, classes=6, seed=3)
CANDIDATES = torch.tensor([[True] * n + [False] * (6 - n) for n in (6, 1, 4, 5, 2, 6, 3, 6)])[
    :, torch.tensor([2, 0, 1, 3, 5, 4])
]


def ranking(teacher, label=None, allowed=None):
    """Indices by falling score, the label first, by a plain sort."""
    order = sorted((i for i in range(len(teacher)) if allowed is None or allowed[i]), key=lambda i: (-teacher[i], i))
    return order if label is None else [label] + [i for i in order if i != label]


def plackett_luce_reference(student, teacher, label=None, scheme="teacher", temperature=1.0, allowed=None):
    """Choice by choice: minus the log of its probability among what is left, by sums of exponentials."""
    order = ranking(teacher, label, allowed)
    n = len(order)
    total = math.fsum(math.exp(teacher[i] / temperature) for i in order)
    falling = [2.0 ** (n - k) - 1 for k in range(1, n + 1)]
    loss = 0.0
    for k, chosen in enumerate(order):
        left = math.fsum(math.exp(student[i]) for i in order[k:])
        step = {
            "teacher": math.exp(teacher[chosen] / temperature) / total,
            "uniform": 1 / n,
            "decreasing": falling[k] / max(sum(falling), 1.0),
            "one_hot": float(k == 0),
            "ones": 1.0,
        }[scheme]
        loss -= step * math.log(math.exp(student[chosen]) / left)
    return loss


def rows(reference, *inputs, **options):
    lists = [item.tolist() for item in inputs]
    return torch.tensor([reference(*row, **options) for row in zip(*lists, strict=True)], dtype=torch.float64)


def margin_reference(student, teacher, label, allowed):
    errors = [
        ((student[label] - student[j]) - (teacher[label] - teacher[j])) ** 2
        for j in range(len(student))
        if j != label and allowed[j]
    ]
    return sum(errors) / max(len(errors), 1)


def pairwise_reference(student, teacher, allowed, soft, temperature=1.0):
    costs = []
    for i in range(len(student)):
        for j in range(len(student)):
            if not (allowed[i] and allowed[j]) or i == j:
                continue
            chance = 1 / (1 + math.exp(student[j] - student[i]))
            if soft and i < j:
                label = 1 / (1 + math.exp((teacher[j] - teacher[i]) / temperature))
                costs.append(-label * math.log(chance) - (1 - label) * math.log(1 - chance))
            elif not soft and teacher[i] > teacher[j]:
                costs.append(-math.log(chance))
    return math.fsum(costs) / max(len(costs), 1)


TARGETED = {
    "plackett_luce": r.plackett_luce,
    "plackett_luce_decreasing": partial(r.plackett_luce, weights="decreasing"),
    "list_mle": r.list_mle,
    "margin_mse": r.margin_mse,
}
UNTARGETED = {
    "plackett_luce_pure": r.plackett_luce,
    "list_net": r.list_net,
    "pairwise_order": r.pairwise_logistic,
    "pairwise_soft": partial(r.pairwise_logistic, pairs="soft"),
}
EVERY = {name: (loss, (STUDENT, TEACHER, TARGET)) for name, loss in TARGETED.items()}
EVERY |= {name: (loss, (STUDENT, TEACHER)) for name, loss in UNTARGETED.items()}
every_loss = pytest.mark.parametrize(("loss", "inputs"), EVERY.values(), ids=EVERY)


@every_loss
def test_contract(loss, inputs):
    check.check_contract(loss, *inputs)
    check.check_leading_axes(loss, *inputs)
    check.check_shift(loss, *inputs)


@every_loss
def test_gradient(loss, inputs):
    check.check_gradient(loss, *inputs)


@every_loss
def test_finite_in_half_precision(loss, inputs):
    student, teacher = check.extreme_logits(6)
    check.check_half(loss, student, teacher, *inputs[2:])


@every_loss
def test_ragged_lists_ignore_what_lies_outside(loss, inputs):
    """Garbage outside the candidates changes nothing, and an empty list counts as a masked row."""
    allowed = CANDIDATES.clone()
    if len(inputs) == 3:
        allowed = allowed.scatter(-1, TARGET[:, None], True)
    allowed[4] = False
    positive = (torch.where(allowed.any(-1), TARGET, -100),) if len(inputs) == 3 else ()
    value, grad = check.gradient(loss, STUDENT, TEACHER, *positive, candidates=allowed)
    assert value.item() != 0
    torch.testing.assert_close(value * 7, loss(STUDENT, TEACHER, *positive, candidates=allowed, reduction="sum"))
    assert torch.equal(grad[~allowed], torch.zeros_like(grad[~allowed]))
    for number in check.GARBAGE:
        dirty = [torch.where(allowed, side, number) for side in (STUDENT, TEACHER)]
        dirty_value, dirty_grad = check.gradient(loss, *dirty, *positive, candidates=allowed)
        torch.testing.assert_close(dirty_value, value)
        torch.testing.assert_close(dirty_grad, grad)
    for i in (0, 2, 6):
        keep = allowed[i]
        place = keep[: TARGET[i]].sum().reshape(1)
        short = [side[i : i + 1, keep] for side in (STUDENT, TEACHER)]
        alone = loss(*short, *[place] * (len(inputs) - 2))
        torch.testing.assert_close(loss(STUDENT, TEACHER, *positive, candidates=allowed, reduction="none")[i], alone)


@every_loss
def test_padded_vocabulary(loss, inputs):
    padding = torch.full((8, 2), -INF, dtype=torch.float64)
    value, grad = check.gradient(loss, *inputs)
    padded = [torch.cat([side, padding], -1) for side in inputs[:2]]
    padded_value, padded_grad = check.gradient(loss, *padded, *inputs[2:])
    torch.testing.assert_close(padded_value, value)
    torch.testing.assert_close(padded_grad[:, :6], grad)
    assert not padded_grad[:, 6:].any()


@pytest.mark.parametrize("scheme", r.STEP_WEIGHTS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_plackett_luce_agrees_with_choice_by_choice(scheme, temperature):
    options = {"weights": scheme, "temperature": temperature, "reduction": "none"}
    got = r.plackett_luce(STUDENT, TEACHER, TARGET, **options)
    want = rows(plackett_luce_reference, STUDENT, TEACHER, TARGET, scheme=scheme, temperature=temperature)
    torch.testing.assert_close(got, want)
    pure = r.plackett_luce(STUDENT, TEACHER, **options)
    torch.testing.assert_close(
        pure, rows(plackett_luce_reference, STUDENT, TEACHER, scheme=scheme, temperature=temperature)
    )
    allowed = CANDIDATES
    ragged = r.plackett_luce(STUDENT, TEACHER, candidates=allowed, **options)
    want = [
        plackett_luce_reference(s, t, None, scheme, temperature, a)
        for s, t, a in zip(STUDENT.tolist(), TEACHER.tolist(), allowed.tolist(), strict=True)
    ]
    torch.testing.assert_close(ragged, torch.tensor(want, dtype=torch.float64))


def test_plackett_luce_gradient_formula():
    """dL/ds_i = sum over k <= rank(i) of a_k sigma_k(i), minus a_rank(i), term by term."""
    _, grad = check.gradient(r.plackett_luce, STUDENT, TEACHER, TARGET, temperature=2.0, reduction="sum")
    for s, t, label, got in zip(STUDENT.tolist(), TEACHER.tolist(), TARGET.tolist(), grad, strict=True):
        order = ranking(t, label)
        total = math.fsum(math.exp(value / 2) for value in t)
        alpha = [math.exp(t[i] / 2) / total for i in order]
        want = [0.0] * 6
        for position, i in enumerate(order):
            want[i] = -alpha[position]
            for k in range(position + 1):
                want[i] += alpha[k] * math.exp(s[i]) / math.fsum(math.exp(s[j]) for j in order[k:])
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_special_cases_of_plackett_luce():
    one_hot = r.plackett_luce(STUDENT, TEACHER, TARGET, weights="one_hot", reduction="none")
    torch.testing.assert_close(one_hot, cross_entropy(STUDENT, TARGET, reduction="none"))
    sure = torch.where(torch.nn.functional.one_hot(TARGET, 6).bool(), 1e4, TEACHER)
    torch.testing.assert_close(
        r.plackett_luce(STUDENT, sure, TARGET),
        cross_entropy(STUDENT, TARGET),
        msg="a sure and right teacher is CE",
    )
    uniform = r.plackett_luce(STUDENT, TEACHER, TARGET, weights="uniform", reduction="none")
    list_mle = r.list_mle(STUDENT, TEACHER, TARGET, reduction="none")
    torch.testing.assert_close(uniform * 6, list_mle)
    torch.testing.assert_close(list_mle, rows(plackett_luce_reference, STUDENT, TEACHER, TARGET, scheme="ones"))
    given_steps = r.plackett_luce(STUDENT, TEACHER, TARGET, weights=torch.tensor([1.0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(given_steps, one_hot.mean())


def test_weight_of_the_first_step_is_the_teachers_on_the_label_even_if_low():
    teacher, target = torch.tensor([[9.0, 0.0, 1.0]]).double(), torch.tensor([1])
    student = torch.tensor([[0.0, 0.0, 0.0]]).double()
    p = teacher.softmax(-1)[0]
    want = p[1] * math.log(3) + p[0] * math.log(2)
    torch.testing.assert_close(r.plackett_luce(student, teacher, target), want)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.sampled_from(r.STEP_WEIGHTS))
def test_plackett_luce_is_convex_in_the_student(seed, share, scheme):
    first, second = check.logits(8, 6, seed=seed, scale=5), check.logits(8, 6, seed=seed + 1, scale=5)
    loss = partial(r.plackett_luce, weights=scheme, reduction="none")
    between = loss(share * first + (1 - share) * second, TEACHER, TARGET)
    chord = share * loss(first, TEACHER, TARGET) + (1 - share) * loss(second, TEACHER, TARGET)
    assert (between <= chord + 1e-10).all()


def test_ties_go_to_the_lower_index_in_every_precision():
    teacher = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    student = torch.arange(5.0)[None].double()
    for dtype in (torch.float64, torch.float32, *check.HALF_TYPES):
        got = r.list_mle(student, teacher.to(dtype))
        want = plackett_luce_reference(student[0].tolist(), [1.4, 2.5, 1.3, 2.4, 1.2], scheme="ones")
        assert got.item() == pytest.approx(want)


def test_suffix_sums_do_not_overflow_or_lose_the_tail():
    """exp and cumsum would overflow at the head and cancel at the tail."""
    student = torch.tensor([[5000.0, 0.0, -5000.0, -5001.0]])
    teacher = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    value, grad = check.gradient(r.list_mle, student, teacher)
    assert value.item() == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-3)
    torch.testing.assert_close(grad[0, 2:], torch.tensor([-1.0, 1.0]) / (1 + math.e), rtol=1e-2, atol=0)
    whole = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    far_up = r.list_mle(whole + 2.0**14, teacher)
    torch.testing.assert_close(far_up, r.list_mle(whole, teacher), rtol=1e-6, atol=0)
    big = check.logits(2, 3000, dtype=torch.float32)
    for scheme in r.STEP_WEIGHTS:
        value, grad = check.gradient(r.plackett_luce, big, big.flip(-1), weights=scheme)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


def test_given_step_weights_beyond_the_end_of_a_list_do_not_matter():
    allowed = torch.tensor([[True, False, True, True, False, False]]).expand(8, 6)
    steps = torch.tensor([0.5, 0.3, 0.2, float("nan"), float("nan"), float("nan")])
    value, grad = check.gradient(r.plackett_luce, STUDENT, TEACHER, weights=steps, candidates=allowed)
    short = r.plackett_luce(STUDENT[:, [0, 2, 3]], TEACHER[:, [0, 2, 3]], weights=steps[:3])
    torch.testing.assert_close(value, short)
    assert torch.isfinite(grad).all()


def test_list_net():
    got = r.list_net(STUDENT, TEACHER, temperature=2.0, teacher_temperature=0.5, reduction="none")
    want = soft_cross_entropy(STUDENT, TEACHER, temperature=2.0, teacher_temperature=0.5, reduction="none")
    torch.testing.assert_close(got, want)
    assert check.gradient(r.list_net, STUDENT, STUDENT)[1].abs().max() < 1e-12


def test_margin_mse_agrees_with_loops():
    allowed = CANDIDATES.scatter(-1, TARGET[:, None], True)
    got = r.margin_mse(STUDENT, TEACHER, TARGET, candidates=allowed, reduction="none")
    torch.testing.assert_close(got, rows(margin_reference, STUDENT, TEACHER, TARGET, allowed))
    first = r.margin_mse(STUDENT, TEACHER, reduction="none")
    torch.testing.assert_close(first, r.margin_mse(STUDENT, TEACHER, TARGET * 0, reduction="none"))
    check.check_zero_at_match(r.margin_mse, STUDENT, STUDENT + 3.0, TARGET)
    check.check_gradient(r.margin_mse, STUDENT, TEACHER, TARGET, wrt=(0, 1))


@pytest.mark.parametrize("soft", [False, True])
def test_pairwise_logistic_agrees_with_loops(soft):
    pairs = "soft" if soft else "order"
    got = r.pairwise_logistic(STUDENT, TEACHER, pairs=pairs, temperature=2.0, candidates=CANDIDATES, reduction="none")
    torch.testing.assert_close(got, rows(pairwise_reference, STUDENT, TEACHER, CANDIDATES, soft=soft, temperature=2.0))
    tied = torch.ones(1, 4)
    if soft:
        assert check.gradient(r.pairwise_logistic, STUDENT, STUDENT, pairs="soft")[1].abs().max() < 1e-12
    else:
        assert r.pairwise_logistic(check.logits(1, 4), tied.double()).item() == 0.0


def test_ignored_targets_leave_the_denominator():
    target = TARGET.clone()
    target[[0, 5]] = -100
    for loss in TARGETED.values():
        values = loss(STUDENT, TEACHER, target, reduction="none")
        assert not values[[0, 5]].any()
        torch.testing.assert_close(loss(STUDENT, TEACHER, target), values.sum() / 6)


def test_a_list_of_one_costs_nothing():
    for loss, inputs in EVERY.values():
        value, grad = check.gradient(loss, STUDENT[:, :1], TEACHER[:, :1], *[TARGET * 0] * (len(inputs) - 2))
        assert value.item() == pytest.approx(0.0, abs=1e-15)
        assert grad.abs().max() < 1e-15


def test_errors_name_the_argument():
    shut = torch.ones(8, 6, dtype=torch.bool).scatter(-1, TARGET[:, None], False)
    cases = [
        ("target", lambda: r.plackett_luce(STUDENT, TEACHER, TARGET + 6)),
        ("target", lambda: r.plackett_luce(STUDENT, TEACHER, TARGET, candidates=shut)),
        ("target", lambda: r.margin_mse(STUDENT, TEACHER, STUDENT)),
        ("teacher_logits", lambda: r.list_mle(STUDENT, TEACHER[:, :5])),
        ("weights", lambda: r.plackett_luce(STUDENT, TEACHER, TARGET, weights="softmax")),
        ("weights", lambda: r.plackett_luce(STUDENT, TEACHER, TARGET, weights=torch.ones(5))),
        ("candidates", lambda: r.list_net(STUDENT, TEACHER, candidates=torch.ones(6, dtype=torch.bool))),
        ("pairs", lambda: r.pairwise_logistic(STUDENT, TEACHER, pairs="hard")),
        ("temperature", lambda: r.plackett_luce(STUDENT, TEACHER, TARGET, temperature=0.0)),
    ]
    for key, call in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.key == key
