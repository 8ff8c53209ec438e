from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses import features
from tests.losses import invariants
from tests.losses.invariants import logits

ROWS, WIDTH = 6, 5
STUDENT, TEACHER = logits(ROWS, WIDTH, seed=1), logits(ROWS, WIDTH, seed=2)
MAPS = logits(ROWS, 3, 2, 4, seed=3), logits(ROWS, 5, 2, 4, seed=4)

VECTOR_LOSSES = {
    "mse": features.mse,
    "mse_sum": partial(features.mse, per_row="sum"),
    "smooth_l1": partial(features.smooth_l1, beta=0.7),
    "l1": partial(features.smooth_l1, beta=0.0),
    "huber": partial(features.huber, delta=1.3),
    "cosine_distance": features.cosine_distance,
    "normalised_mse": features.normalised_mse,
    "normalised_mse_sum": partial(features.normalised_mse, per_row="sum"),
    "normalised_l1": features.normalised_l1,
    "normalised_l1_sum": partial(features.normalised_l1, per_row="sum"),
}


def _unit(row: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(x * x for x in row))
    return [x / norm for x in row] if norm else list(row)


def _small(difference: float, knee: float) -> float:
    size = abs(difference)
    return size * size / (2 * knee) if size < knee else size - knee / 2


REFERENCES = {
    "mse": lambda s, t: math.fsum((a - b) ** 2 for a, b in zip(s, t)) / len(s),
    "mse_sum": lambda s, t: math.fsum((a - b) ** 2 for a, b in zip(s, t)),
    "smooth_l1": lambda s, t: math.fsum(_small(a - b, 0.7) for a, b in zip(s, t)) / len(s),
    "l1": lambda s, t: math.fsum(abs(a - b) for a, b in zip(s, t)) / len(s),
    "huber": lambda s, t: math.fsum(1.3 * _small(a - b, 1.3) for a, b in zip(s, t)) / len(s),
    "cosine_distance": lambda s, t: 1 - math.fsum(a * b for a, b in zip(_unit(s), _unit(t))),
    "normalised_mse": lambda s, t: math.fsum((a - b) ** 2 for a, b in zip(_unit(s), _unit(t))) / len(s),
    "normalised_mse_sum": lambda s, t: 2 - 2 * math.fsum(a * b for a, b in zip(_unit(s), _unit(t))),
    "normalised_l1": lambda s, t: math.fsum(abs(a - b) for a, b in zip(_unit(s), _unit(t))) / len(s),
    "normalised_l1_sum": lambda s, t: math.fsum(abs(a - b) for a, b in zip(_unit(s), _unit(t))),
}


@pytest.mark.parametrize("name", VECTOR_LOSSES)
class TestVectorLosses:
    def test_reference(self, name):
        values = VECTOR_LOSSES[name](STUDENT, TEACHER, reduction="none")
        expected = [REFERENCES[name](s, t) for s, t in zip(STUDENT.tolist(), TEACHER.tolist())]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12, atol=1e-14)

    def test_gradient(self, name):
        invariants.check_gradient(VECTOR_LOSSES[name], STUDENT, TEACHER, wrt=(0, 1))

    def test_zero_at_match(self, name):
        invariants.check_zero_at_match(VECTOR_LOSSES[name], STUDENT, STUDENT.clone(), tolerance=0.0)

    def test_contract(self, name):
        invariants.check_contract(VECTOR_LOSSES[name], STUDENT, TEACHER)

    def test_leading_axes(self, name):
        invariants.check_leading_axes(VECTOR_LOSSES[name], STUDENT, TEACHER)

    def test_channels_first(self, name):
        loss = VECTOR_LOSSES[name]
        student, teacher = logits(2, 3, 4, 5, seed=5), logits(2, 3, 4, 5, seed=6)
        maps = loss(student, teacher, axis=1, reduction="none")
        assert maps.shape == (2, 4, 5)
        last = loss(student.movedim(1, -1), teacher.movedim(1, -1), reduction="none")
        torch.testing.assert_close(maps, last, rtol=0, atol=0)
        invariants.check_masked_rows(partial(loss, axis=1), student, teacher)

    def test_half(self, name):
        invariants.check_half(VECTOR_LOSSES[name], STUDENT * 1e4, TEACHER * -1e4)
        invariants.check_half(VECTOR_LOSSES[name], STUDENT * 1e-3, TEACHER * 1e4)

    def test_shapes_are_refused(self, name):
        with pytest.raises(UserError, match="teacher"):
            VECTOR_LOSSES[name](STUDENT, TEACHER[:, :1])
        with pytest.raises(UserError, match="mask"):
            VECTOR_LOSSES[name](STUDENT, TEACHER, mask=torch.ones(ROWS))


@pytest.mark.parametrize("name", ["cosine_distance", "normalised_mse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_zero_vectors_are_harmless(name, dtype):
    student = STUDENT.to(dtype).clone()
    student[0] = 0
    student[1] = 1e-12 if dtype != torch.float16 else 6e-8  # so short that 1 / norm is no gradient to follow
    rest, rest_grad = invariants.gradient(VECTOR_LOSSES[name], student[2:], TEACHER[2:].to(dtype), reduction="sum")
    value, grad = invariants.gradient(VECTOR_LOSSES[name], student, TEACHER.to(dtype), reduction="sum")
    assert torch.isfinite(value)
    assert torch.equal(grad[:2], torch.zeros_like(grad[:2]))
    torch.testing.assert_close(grad[2:], rest_grad)
    each = 1.0 if name == "cosine_distance" else 1.0 / WIDTH
    torch.testing.assert_close(value - rest, value.new_tensor(2 * each), rtol=1e-5, atol=1e-5)


def test_two_zero_vectors_agree():
    zero = torch.zeros(3, 4)
    invariants.check_zero_at_match(features.cosine_distance, zero, zero)
    assert features.normalised_mse(zero, zero).item() == 0


def test_unit_vectors_survive_extremes():
    vectors = torch.tensor([[3e30, 4e30], [3e-7, 4e-7], [0.0, 0.0]])
    torch.testing.assert_close(features.unit_vectors(vectors), torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))


def test_huber_is_delta_times_smooth_l1():
    huber = features.huber(STUDENT, TEACHER, delta=0.4)
    torch.testing.assert_close(huber, 0.4 * features.smooth_l1(STUDENT, TEACHER, beta=0.4))


def test_wrong_options_name_the_key():
    for call, key in (
        (lambda: features.mse(STUDENT, TEACHER, per_row="max"), "per_row"),
        (lambda: features.mse(STUDENT, TEACHER, reduction="average"), "reduction"),
        (lambda: features.huber(STUDENT, TEACHER, delta=0.0), "delta"),
        (lambda: features.smooth_l1(STUDENT, TEACHER, beta=-1.0), "beta"),
        (lambda: features.attention_transfer(*MAPS, distance="cosine"), "distance"),
        (lambda: features.attention_transfer(*MAPS, axis=0), "axis"),
        (lambda: features.attention_transfer(MAPS[0], MAPS[1][..., :3]), "positions"),
    ):
        with pytest.raises(UserError, match=key):
            call()


AT_LOSSES = {
    "mean": features.attention_transfer,
    "sum": partial(features.attention_transfer, per_row="sum"),
    "euclidean": partial(features.attention_transfer, distance="euclidean"),
}


@pytest.mark.parametrize("name", AT_LOSSES)
class TestAttentionTransfer:
    def test_reference(self, name):
        def attention(sample: np.ndarray) -> list[float]:
            channels, height, width = sample.shape
            return _unit(
                [
                    math.fsum(sample[c, y, x] ** 2 for c in range(channels)) / channels
                    for y in range(height)
                    for x in range(width)
                ]
            )

        expected = []
        for student, teacher in zip(MAPS[0].numpy(), MAPS[1].numpy()):
            squares = math.fsum((a - b) ** 2 for a, b in zip(attention(student), attention(teacher)))
            expected.append({"mean": squares / 8, "sum": squares, "euclidean": math.sqrt(squares)}[name])
        np.testing.assert_allclose(AT_LOSSES[name](*MAPS, reduction="none").numpy(), expected, rtol=1e-11)

    def test_gradient(self, name):
        invariants.check_gradient(AT_LOSSES[name], MAPS[0][:2], MAPS[1][:2], wrt=(0, 1))

    def test_zero_at_match(self, name):
        invariants.check_zero_at_match(AT_LOSSES[name], MAPS[0], MAPS[0].clone(), tolerance=0.0)

    def test_contract(self, name):
        invariants.check_contract(AT_LOSSES[name], *MAPS)

    def test_half(self, name):
        invariants.check_half(AT_LOSSES[name], MAPS[0] * 1e4, MAPS[1] * 1e-4)
        invariants.check_half(AT_LOSSES[name], MAPS[0] * 0, MAPS[1] * 1e4)

    def test_tokens(self, name):
        tokens = [maps.flatten(2).mT for maps in MAPS]
        torch.testing.assert_close(AT_LOSSES[name](*tokens, axis=-1), AT_LOSSES[name](*MAPS))

    def test_padding_side(self, name):
        tokens = [maps.flatten(2).mT for maps in MAPS]
        plain = AT_LOSSES[name](*tokens, axis=-1, reduction="none")
        for side in ("left", "right"):
            junk = torch.full((ROWS, 3, 1), float("nan"), dtype=torch.float64)
            step = 1 if side == "left" else -1
            padded = [torch.cat([junk.expand(-1, -1, t.shape[-1]), t][::step], 1) for t in tokens]
            keep = padded[0][..., 0].isfinite()
            leaf = padded[0].clone().requires_grad_()
            values = AT_LOSSES[name](leaf, padded[1], axis=-1, position_mask=keep, reduction="none")
            torch.testing.assert_close(values, plain)
            values.sum().backward()
            assert torch.isfinite(leaf.grad).all()
            assert torch.equal(leaf.grad[~keep], torch.zeros_like(leaf.grad[~keep]))


@pytest.mark.parametrize("name", [*VECTOR_LOSSES, *AT_LOSSES])
def test_nan_that_counts_is_not_hidden(name):
    loss, (student, teacher) = (VECTOR_LOSSES | AT_LOSSES)[name], MAPS if name in AT_LOSSES else (STUDENT, TEACHER)
    student = student.clone()
    student[2].view(-1)[1] = float("nan")
    assert loss(student, teacher, reduction="none").isnan().tolist() == [row == 2 for row in range(ROWS)]
