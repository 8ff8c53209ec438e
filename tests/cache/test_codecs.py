from __future__ import annotations

import pytest
import torch

from limbeck.cache.codecs import codec
from limbeck.errors import UserError
from limbeck.signals import SparseLogits

DENSE = ["exact", "float32", "float16", "bfloat16", "int8", "int4"]


def signals() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 37, generator=generator)
    return {
        "normal": normal,
        "tiny": normal * 1e-7,
        "large": normal * 1e4,
        "shifted": normal + 1000,
        "constant": torch.full((4, 5), 3.25),
        "sparse": normal.relu(),
        "map": torch.randn(6, 3, 4, 8, generator=generator),
        "scalar": torch.randn(9, generator=generator),
        "half": normal.half(),
    }


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("kind", list(signals()))
def test_round_trip_stays_within_the_stated_bound(name: str, kind: str) -> None:
    value = signals()[kind]
    chosen = codec(name)
    parts = chosen.encode(value)
    assert all(len(part) == len(value) for part in parts.values())
    decoded = chosen.decode(parts, value.shape[1:])
    assert isinstance(decoded, torch.Tensor)
    assert decoded.shape == value.shape
    error = (decoded.double() - value.double()).abs()
    assert bool((error <= chosen.bound(value)).all()), (error.max(), chosen.bound(value).min())


@pytest.mark.parametrize(("name", "share"), [("float16", 0.5), ("bfloat16", 0.5), ("int8", 0.5), ("int4", 0.5)])
def test_the_bound_is_not_idle(name: str, share: float) -> None:
    value = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    chosen = codec(name)
    error = (chosen.roundtrip(value) - value).double().abs()
    assert float((error / chosen.bound(value)).max()) > share


def test_int8_is_exact_for_constant_rows_and_scalars_and_does_not_mind_a_shift() -> None:
    chosen = codec("int8")
    constant, scalar = torch.full((3, 7), -0.3), torch.randn(5)
    assert torch.equal(chosen.roundtrip(constant), constant)
    assert torch.equal(chosen.roundtrip(scalar), scalar)
    value = torch.rand(20, 16)
    assert float((chosen.roundtrip(value + 64) - value - 64).abs().max()) < 1.1 / 510 + 1e-4


def test_encoding_a_row_does_not_depend_on_its_neighbours() -> None:
    value = signals()["normal"]
    for name in [*DENSE, "topk:5"]:
        chosen = codec(name)
        whole, alone = chosen.encode(value), chosen.encode(value[3:4])
        assert all(torch.equal(whole[part][3:4], alone[part]) for part in whole)


def test_minus_infinity_survives_the_floats() -> None:
    value = torch.tensor([[0.5, -torch.inf, 2.0]])
    for name in ("float32", "float16", "bfloat16"):
        assert torch.equal(codec(name).roundtrip(value), value)
        assert bool(codec(name).in_range(value).all())
    assert not bool(codec("int8").in_range(value).all())
    assert not bool(codec("float16").in_range(torch.tensor([7e4])).all())


@pytest.mark.parametrize("name", ["topk:1", "topk:8", "topk:8:float32", "topk:300"])
@pytest.mark.parametrize("size", [300, 60_000, 70_000])
def test_top_k_is_a_proper_distribution_within_its_bound(name: str, size: int) -> None:
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(2)) * 6
    chosen = codec(name)
    sparse = chosen.roundtrip(logits)
    assert isinstance(sparse, SparseLogits)
    log_probs = logits.double().log_softmax(-1)
    kept = log_probs.gather(-1, sparse.indices)
    assert torch.equal(sparse.indices, SparseLogits.from_dense(logits, sparse.values.shape[-1]).indices)
    assert bool(((sparse.values.double() - kept).abs() <= chosen.bound(logits)).all())
    total = torch.logaddexp(sparse.values.double().logsumexp(-1), sparse.rest.double())
    assert float(total.abs().max()) < 1e-5
    # The rest against the members it stands for, summed in double precision.
    others = log_probs.scatter(-1, sparse.indices, -torch.inf).logsumexp(-1)
    within = (sparse.rest.double() - others).abs() <= chosen.bound(logits)[:, 0]
    assert bool((within | (torch.isneginf(others) & torch.isneginf(sparse.rest))).all())


def test_divergence_on_cached_top_k_is_never_negative_and_zero_only_at_the_teacher() -> None:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(200, 50, generator=generator, dtype=torch.float64) * 4
    sparse = codec("topk:4").roundtrip(teacher.float())
    assert isinstance(sparse, SparseLogits)
    target = torch.cat([sparse.values, sparse.rest.unsqueeze(-1)], -1).double()
    for scale in (0.0, 1e-3, 1.0):
        student = teacher + scale * torch.randn(200, 50, generator=generator, dtype=torch.float64)
        model = SparseLogits.from_dense(student.float(), 50).to_dense().double()
        kept = model.gather(-1, sparse.indices)
        rest = model.scatter(-1, sparse.indices, -torch.inf).logsumexp(-1, keepdim=True)
        coarse = (target.exp() * (target - torch.cat([kept, rest], -1))).sum(-1)
        dense = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)
        assert float(coarse.min()) > -1e-6
        # Merging outcomes can only lose divergence: the cached one is under the full one, but for rounding.
        assert bool((coarse <= dense + 1e-4 + 0.05 * dense).all())
        if scale == 0.0:
            assert float(coarse.max()) < 1e-4


def test_a_longer_top_k_is_cut_with_its_rest() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(4))
    direct = codec("topk:3:float32").roundtrip(logits)
    cut = codec("topk:3:float32").roundtrip(SparseLogits.from_dense(logits, 11))
    assert isinstance(direct, SparseLogits)
    assert isinstance(cut, SparseLogits)
    assert torch.equal(direct.indices, cut.indices)
    torch.testing.assert_close(direct.rest, cut.rest)
    with pytest.raises(UserError, match="K up to 11"):
        codec("topk:12").encode(SparseLogits.from_dense(logits, 11))
    with pytest.raises(UserError, match="top-k"):
        codec("float16").encode(SparseLogits.from_dense(logits, 11))


@pytest.mark.parametrize("name", ["float8", "topk", "topk:0", "topk:x", "topk:4:int8", "float16:2", ""])
def test_unknown_codecs_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="topk:K"):
        codec(name)
