from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import _chunked_head, divergences, vocabulary
from limbeck.losses.classification import cross_entropy
from limbeck.signals import SparseLogits
from tests.losses import invariants
from tests.losses.invariants import labels, logits

ROWS, WIDTH, TEACHER_WIDTH, VOCABULARY, K = 6, 4, 3, 11, 3
HIDDEN, HEAD, BIAS = (
    logits(ROWS, WIDTH, seed=1),
    logits(VOCABULARY, WIDTH, seed=2),
    logits(VOCABULARY, seed=3),
)
TEACHER_HIDDEN, TEACHER_HEAD = logits(ROWS, TEACHER_WIDTH, seed=4), logits(VOCABULARY, TEACHER_WIDTH, seed=5)
TEACHER_BIAS, TARGET = logits(VOCABULARY, seed=6), labels(ROWS, classes=VOCABULARY, seed=7)
MASK = torch.tensor([True, False, True, True, False, True])
CHUNKS = (1, 2, 4, 6, 100, None)


def _linear(hidden: Tensor, head: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(hidden, head, bias)


def _sparse(dtype: torch.dtype = torch.float64) -> SparseLogits:
    log_probs = _linear(TEACHER_HIDDEN, TEACHER_HEAD, TEACHER_BIAS).log_softmax(-1)
    values, indices = log_probs.topk(K, -1)
    rest = log_probs.scatter(-1, indices, -torch.inf).logsumexp(-1)
    return SparseLogits(values.to(dtype), indices, rest.to(dtype), VOCABULARY)


SPARSE = _sparse()


def _ce(hidden, target, **options):
    return vocabulary.linear_cross_entropy(hidden, HEAD.to(hidden.dtype), target, bias=BIAS.to(hidden.dtype), **options)


def _div(hidden, teacher_hidden, **options):
    dtype = hidden.dtype
    return vocabulary.linear_divergence(
        hidden,
        HEAD.to(dtype),
        teacher_hidden,
        TEACHER_HEAD.to(dtype),
        teacher_bias=TEACHER_BIAS.to(dtype),
        **options,
    )


def _top(hidden, teacher, **options):
    return vocabulary.linear_sparse_divergence(hidden, HEAD.to(hidden.dtype), teacher, **options)


def _plain_ce(hidden, head, bias, **options):
    return cross_entropy(_linear(hidden, head, bias), TARGET, **options)


def _plain_div(hidden, head, bias, name, **options):
    teacher = _linear(TEACHER_HIDDEN, TEACHER_HEAD, TEACHER_BIAS).to(hidden.dtype)
    return getattr(divergences, name)(_linear(hidden, head, bias), teacher, **options)


def _plain_top(hidden, head, bias, name, **options):
    return getattr(divergences, name)(_linear(hidden, head, bias), _sparse(hidden.dtype), **options)


def _chunked_ce(hidden, head, bias, **options):
    return vocabulary.linear_cross_entropy(hidden, head, TARGET, bias=bias, **options)


def _chunked_div(hidden, head, bias, name, **options):
    teacher = [x.to(hidden.dtype) for x in (TEACHER_HIDDEN, TEACHER_HEAD, TEACHER_BIAS)]
    return vocabulary.linear_divergence(
        hidden, head, *teacher[:2], student_bias=bias, teacher_bias=teacher[2], divergence=name, **options
    )


def _chunked_top(hidden, head, bias, name, **options):
    teacher = _sparse(hidden.dtype)
    return vocabulary.linear_sparse_divergence(hidden, head, teacher, student_bias=bias, divergence=name, **options)


PAIRS = {
    "ce": (_chunked_ce, _plain_ce),
    "ce_smooth": tuple(partial(f, label_smoothing=0.1) for f in (_chunked_ce, _plain_ce)),
}
for _name in vocabulary.DIVERGENCES:
    PAIRS[_name] = tuple(partial(f, name=_name, temperature=2.0) for f in (_chunked_div, _plain_div))
    PAIRS[f"sparse_{_name}"] = tuple(partial(f, name=_name, temperature=1.5) for f in (_chunked_top, _plain_top))
LOSSES = {
    "ce": (_ce, (HIDDEN, TARGET)),
    "dense": (_div, (HIDDEN, TEACHER_HIDDEN)),
    "sparse": (_top, (HIDDEN, SPARSE)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two rows of logits a block and tiles of three words, so that every loop turns more than once."""
    monkeypatch.setattr(_chunked_head, "BLOCK_ELEMENTS", 2 * VOCABULARY)
    monkeypatch.setattr(_chunked_head, "TILE_ELEMENTS", 3 * WIDTH)


def _probabilities(hidden, head, bias):
    """Nested lists, no tensor algebra."""
    out = []
    for row in hidden.tolist():
        scores = [math.fsum(a * b for a, b in zip(row, word)) + c for word, c in zip(head.tolist(), bias.tolist())]
        top = max(scores)
        parts = [math.exp(x - top) for x in scores]
        out.append([p / math.fsum(parts) for p in parts])
    return out


def _kl(target, model):
    return math.fsum(p * math.log(p / q) for p, q in zip(target, model))


class TestReference:
    """Loops over words in double precision, against the chunked functions themselves."""

    student = _probabilities(HIDDEN, HEAD, BIAS)
    teacher = _probabilities(TEACHER_HIDDEN, TEACHER_HEAD, TEACHER_BIAS)

    def test_cross_entropy(self):
        values = _chunked_ce(HIDDEN, HEAD, BIAS, chunk=4, reduction="none")
        expected = [-math.log(p[y]) for p, y in zip(self.student, TARGET.tolist())]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)

    @pytest.mark.parametrize(
        ("name", "formula"),
        [
            ("forward_kl", lambda p, q: _kl(p, q)),
            ("reverse_kl", lambda p, q: _kl(q, p)),
            ("jeffreys", lambda p, q: _kl(p, q) + _kl(q, p)),
            (
                "jensen_shannon",
                lambda p, q: sum(_kl(x, [(a + b) / 2 for a, b in zip(p, q)]) / 2 for x in (p, q)),
            ),
            ("total_variation", lambda p, q: math.fsum(abs(a - b) for a, b in zip(p, q)) / 2),
        ],
    )
    def test_divergences(self, name, formula):
        values = _chunked_div(HIDDEN, HEAD, BIAS, name, chunk=4, reduction="none")
        expected = [formula(p, q) for p, q in zip(self.teacher, self.student)]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)

        def coarse(probabilities, words):
            kept = [probabilities[w] for w in words]
            return [*kept, math.fsum(p for w, p in enumerate(probabilities) if w not in words)]

        words = SPARSE.indices.tolist()
        values = _chunked_top(HIDDEN, HEAD, BIAS, name, chunk=4, reduction="none")
        expected = [formula(coarse(p, w), coarse(q, w)) for p, q, w in zip(self.teacher, self.student, words)]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)


def _value_and_gradients(loss, *leaves: Tensor, **options) -> tuple[Tensor, ...]:
    leaves = tuple(x.detach().clone().requires_grad_() for x in leaves)
    value = loss(*leaves, **options)
    scale = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view_as(value) if value.ndim else 1.7
    return (value.detach(), *torch.autograd.grad((value * scale).sum(), leaves))


@pytest.mark.parametrize("name", PAIRS)
class TestPlainPath:
    def test_every_chunk_equals_plain(self, name):
        chunked, plain = PAIRS[name]
        weight = logits(ROWS, seed=8).abs()
        for options in (
            {},
            {"reduction": "none"},
            {"reduction": "sum", "weight": weight},
            {"mask": MASK},
            {"mask": MASK, "reduction": "none"},
            {"mask": MASK, "weight": weight, "denominator": 9},
        ):
            expected = _value_and_gradients(plain, HIDDEN, HEAD, BIAS, **options)
            for chunk in CHUNKS:
                given = _value_and_gradients(chunked, HIDDEN, HEAD, BIAS, chunk=chunk, **options)
                for one, other in zip(given, expected):
                    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)

    def test_gradcheck(self, name):
        chunked, _ = PAIRS[name]
        leaves = tuple(x.clone().requires_grad_() for x in (HIDDEN, HEAD, BIAS))
        for reduction in ("mean", "none"):
            function = lambda *given: chunked(*given, reduction=reduction, chunk=4)  # noqa: B023, E731
            assert torch.autograd.gradcheck(function, leaves, fast_mode=True)

    def test_float32(self, name):
        chunked, plain = PAIRS[name]
        leaves = [x.float() for x in (HIDDEN, HEAD, BIAS)]
        for one, other in zip(_value_and_gradients(chunked, *leaves), _value_and_gradients(plain, *leaves)):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
class TestContract:
    def test_contract(self, name):
        loss, inputs = LOSSES[name]
        invariants.check_contract(partial(loss, chunk=4), *inputs)

    def test_leading_axes(self, name):
        loss, inputs = LOSSES[name]
        invariants.check_leading_axes(partial(loss, chunk=4), *inputs)

    def test_padding_side(self, name):
        """[2, 5] tokens, padded to the left or to the right with garbage."""
        loss, inputs = LOSSES[name]
        plain, plain_grad = invariants.gradient(loss, *inputs)
        for keep in (torch.arange(8) < 6, torch.arange(8) >= 2):

            def pad(tensor, keep=keep):
                filler = torch.nan if tensor.is_floating_point() else 10**6
                padded = torch.full((8, *tensor.shape[1:]), filler, dtype=tensor.dtype)
                padded[keep] = tensor
                return padded

            padded = [x.map(pad) if isinstance(x, SparseLogits) else pad(x) for x in inputs]
            value, grad = invariants.gradient(loss, *padded, mask=keep)
            torch.testing.assert_close(value, plain)
            torch.testing.assert_close(grad[keep], plain_grad)

    def test_half(self, name):
        """Logits of about 10^4."""
        loss, inputs = LOSSES[name]
        inputs = [x * 1e3 if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
        for divergence in ({},) if name == "ce" else tuple({"divergence": d} for d in vocabulary.DIVERGENCES):
            invariants.check_half(partial(loss, chunk=4, **divergence), *inputs)

    def test_no_rows(self, name):
        loss, inputs = LOSSES[name]
        empty = [x.map(lambda t: t[:0]) if isinstance(x, SparseLogits) else x[:0] for x in inputs]
        value, grad = invariants.gradient(loss, *empty)
        assert value.item() == 0
        assert grad.shape == (0, WIDTH)


@pytest.mark.parametrize("divergence", [d for d in vocabulary.DIVERGENCES if d != "soft_cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_where_student_is_teacher(divergence, dtype):
    hidden, head, bias = (x.to(dtype) for x in (HIDDEN, HEAD, BIAS))

    def loss(hidden, head, bias, reduction):
        return vocabulary.linear_divergence(
            hidden, head, hidden, head, student_bias=bias, teacher_bias=bias, divergence=divergence, chunk=4,
            reduction=reduction,
        )  # fmt: skip

    tolerance = 1e-14 if dtype == torch.float64 else 5e-6  # rounding, not a slope
    for reduction in ("mean", "none"):
        value, *grads = _value_and_gradients(partial(loss, reduction=reduction), hidden, head, bias)
        assert value.abs().max() <= tolerance
        assert max(g.abs().max() for g in grads) <= tolerance


def test_sparse_zero_where_outcomes_agree():
    def loss(hidden, reduction="none"):
        given = SparseLogits.from_dense(_linear(HIDDEN, HEAD), K)
        return vocabulary.linear_sparse_divergence(hidden, HEAD, given, reduction=reduction)

    value, grad = _value_and_gradients(loss, HIDDEN)
    assert value.abs().max() < 1e-6  # SparseLogits.from_dense rounds to float32
    assert grad.abs().max() < 1e-5


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_close_to_double(self, dtype):
        """The value is float32, gradients have their input's dtype; both are near the double result."""
        leaves = [x.to(dtype) for x in (HIDDEN / 4, HEAD / 4, BIAS / 4)]
        given = _value_and_gradients(_chunked_ce, *leaves, chunk=2)
        expected = _value_and_gradients(_plain_ce, *[x.double() for x in leaves])
        assert given[0].dtype == torch.float32
        for one, other in zip(given, expected):
            torch.testing.assert_close(one.double(), other, rtol=3e-2, atol=1e-2)
        assert [g.dtype for g in given[1:]] == [dtype] * 3

    def test_loss_scale_reaches_float16_before_rounding(self):
        """A gradient below float16's smallest number survives if the loss is scaled, as on the plain path."""
        hidden = HIDDEN.half().requires_grad_()
        head = (HEAD * 1e-2).half().requires_grad_()
        loss = vocabulary.linear_cross_entropy(hidden, head, TARGET, denominator=1e7)
        (unscaled,) = torch.autograd.grad(loss, head, retain_graph=True)
        (scaled,) = torch.autograd.grad(loss * 2**14, head)
        reference = HEAD.mul(1e-2).half().double().requires_grad_()
        plain = cross_entropy(_linear(HIDDEN.half().double(), reference), TARGET, denominator=1e7) * 2**14
        (expected,) = torch.autograd.grad(plain, reference)
        assert (unscaled == 0).sum() > (scaled == 0).sum()
        torch.testing.assert_close(scaled.double(), expected, rtol=1e-2, atol=1e-7)

    def test_autocast_casts_as_linear_does(self):
        hidden, head = HIDDEN.float(), HEAD.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = vocabulary.linear_cross_entropy(hidden, head, TARGET, chunk=2)
            plain = cross_entropy(_linear(hidden, head), TARGET)
        direct = vocabulary.linear_cross_entropy(hidden.bfloat16(), head.bfloat16(), TARGET)
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, direct)
        torch.testing.assert_close(given, plain, rtol=2e-2, atol=2e-2)

    def test_mixed_dtypes_are_promoted(self):
        value = vocabulary.linear_cross_entropy(HIDDEN.bfloat16(), HEAD.float(), TARGET)
        torch.testing.assert_close(
            value, vocabulary.linear_cross_entropy(HIDDEN.bfloat16().float(), HEAD.float(), TARGET)
        )


class TestAutograd:
    def test_second_backward_computes_anew(self):
        leaves = tuple(x.clone().requires_grad_() for x in (HIDDEN, HEAD, BIAS))
        value = _chunked_ce(*leaves)
        first = torch.autograd.grad(value, leaves, torch.tensor(3.0, dtype=torch.float64), retain_graph=True)
        kept = [g.clone() for g in first]
        second = torch.autograd.grad(value, leaves)
        for a, b, c in zip(first, second, kept):
            torch.testing.assert_close(a, 3 * b)
            torch.testing.assert_close(a, c, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(value, leaves)

    def test_nothing_is_computed_for_frozen_parts(self, monkeypatch):
        def refuse(*_):
            raise AssertionError("gradient of the frozen head")

        monkeypatch.setattr(_chunked_head, "_add_outer", refuse)
        hidden = HIDDEN.clone().requires_grad_()
        _chunked_ce(hidden, HEAD, BIAS).backward()
        assert hidden.grad is not None
        monkeypatch.setattr(_chunked_head, "_project_back", refuse)
        head = HEAD.clone().requires_grad_()
        with torch.no_grad():
            assert not _chunked_ce(HIDDEN, head, BIAS).requires_grad
        with torch.inference_mode():
            _chunked_ce(HIDDEN, head, BIAS)

    def test_forward_and_backward_multiply_once(self, monkeypatch):
        """A scalar loss computes the logits once; ``none`` again when each row's gradient is known."""
        count = []
        project = _chunked_head._project
        monkeypatch.setattr(_chunked_head, "_project", lambda *given: count.append(1) or project(*given))
        for reduction, times in (("mean", 3), ("sum", 3), ("none", 6)):
            count.clear()
            hidden = HIDDEN.clone().requires_grad_()
            _chunked_ce(hidden, HEAD, BIAS, chunk=2, reduction=reduction).sum().backward()
            assert len(count) == times, reduction

    def test_masked_rows_are_not_computed(self, monkeypatch):
        seen = []
        project = _chunked_head._project
        monkeypatch.setattr(
            _chunked_head,
            "_project",
            lambda hidden, *rest: seen.append(len(hidden)) or project(hidden, *rest),
        )
        _chunked_ce(HIDDEN, HEAD, BIAS, chunk=3, mask=MASK)
        assert seen == [3, 1]

    def test_learned_weight_and_denominator(self):
        weight, denominator = logits(ROWS, seed=9).abs(), torch.tensor(5.0, dtype=torch.float64)

        def of(loss):
            return lambda w, d: loss(HIDDEN, HEAD, BIAS, weight=w, denominator=d, mask=MASK)

        given = _value_and_gradients(of(partial(_chunked_ce, chunk=2)), weight, denominator)
        for one, other in zip(given, _value_and_gradients(of(_plain_ce), weight, denominator)):
            torch.testing.assert_close(one, other)

    def test_teacher_gets_no_gradient(self):
        teacher_hidden, teacher_head = (
            TEACHER_HIDDEN.clone().requires_grad_(),
            TEACHER_HEAD.clone().requires_grad_(),
        )
        hidden = HIDDEN.clone().requires_grad_()
        for reduction in ("mean", "none"):
            loss = vocabulary.linear_divergence(hidden, HEAD, teacher_hidden, teacher_head, reduction=reduction).sum()
            assert torch.autograd.grad(loss, (teacher_hidden, teacher_head), allow_unused=True) == (
                None,
                None,
            )

    def test_overwritten_teacher_is_noticed(self):
        """``none`` compares again in the backward pass, which a teacher that moved on would falsify."""
        hidden, teacher = HIDDEN.clone().requires_grad_(), TEACHER_HEAD.clone()
        loss = vocabulary.linear_divergence(hidden, HEAD, TEACHER_HIDDEN, teacher, reduction="none")
        teacher.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


def test_ignored_labels_do_not_count():
    target = TARGET.clone()
    target[~MASK] = -100
    torch.testing.assert_close(_chunked_ce(HIDDEN, HEAD, BIAS, mask=MASK), _ce(HIDDEN, target))
    assert _ce(HIDDEN, torch.full_like(TARGET, -100)).item() == 0


def test_divergence_may_be_a_function():
    function = partial(divergences.jensen_shannon, beta=0.2, reduction="none")
    given = vocabulary.linear_divergence(HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD, divergence=function, chunk=4)
    plain = function(_linear(HIDDEN, HEAD), _linear(TEACHER_HIDDEN, TEACHER_HEAD)).mean()
    torch.testing.assert_close(given, plain)


def test_memory_does_not_grow_with_rows_times_vocabulary(monkeypatch):
    """No tensor of a tenth of rows x vocabulary is ever made, but for the gradient of the head."""
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            outs = out if isinstance(out, (tuple, list)) else (out,)
            largest.extend(x.numel() for x in outs if isinstance(x, Tensor))
            return out

    rows, words = 100, 500
    hidden, head = torch.randn(rows, 4, requires_grad=True), torch.randn(words, 4, requires_grad=True)
    teacher = torch.randn(rows, 4)
    monkeypatch.setattr(_chunked_head, "CHUNK_ELEMENTS", 8 * words)
    for reduction in ("mean", "none"):
        with Watch():
            loss = vocabulary.linear_divergence(hidden, head, teacher, head.detach(), reduction=reduction).sum()
            loss.backward()
    assert max(largest) <= 8 * words < rows * words / 10


def test_wrong_inputs_name_the_key():
    for call, key in (
        (lambda: _ce(HIDDEN, TARGET + VOCABULARY), "target"),
        (lambda: _ce(HIDDEN, TARGET, chunk=0), "chunk"),
        (lambda: _ce(HIDDEN, TARGET, reduction="average"), "reduction"),
        (lambda: _ce(HIDDEN, TARGET, mask=MASK[:2]), "mask"),
        (lambda: _ce(HIDDEN[:, :2], TARGET), "head_weight"),
        (lambda: _div(HIDDEN, TEACHER_HIDDEN[:2]), "teacher_hidden"),
        (lambda: _div(HIDDEN, TEACHER_HIDDEN[:, :2]), "teacher_weight"),
        (lambda: vocabulary.linear_divergence(HIDDEN, HEAD, HIDDEN, HEAD[:5]), "vocabulary"),
        (lambda: _div(HIDDEN, TEACHER_HIDDEN, divergence="kl"), "divergence"),
        (
            lambda: _div(HIDDEN, TEACHER_HIDDEN, divergence=divergences.forward_kl, temperature=2.0),
            "temperature",
        ),
        (lambda: _top(HIDDEN[:3], SPARSE), "teacher"),
    ):
        with pytest.raises(UserError, match=key):
            call()


def test_a_teacher_that_gives_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight, logits = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (7, 4), (5, 7))
    )
    hidden.requires_grad_()
    found = vocabulary.linear_divergence(hidden, weight, logits, None, chunk=2)
    (gradient,) = torch.autograd.grad(found, hidden)
    want = divergences.forward_kl(hidden @ weight.T, logits)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(gradient, torch.autograd.grad(want, hidden)[0])
    with pytest.raises(UserError, match="teacher_hidden: given a vocabulary of 6"):
        vocabulary.linear_divergence(hidden, weight, logits[:, :6], None)
