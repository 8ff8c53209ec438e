from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.cache import CacheReader, CacheWriter
from limbeck.cache.codecs import codec
from limbeck.cache.packed import Packed
from limbeck.cache.packing import Groups, bytes_of, fields_of, grades, ones_of, ones_of_fields, partition
from limbeck.errors import UserError
from limbeck.signals import SparseLogits
from tests.cache.helpers import PARTS

NAMES = [
    "packed:1",
    "packed:24",
    "packed:24:9",
    "packed:300:2",
    "mass:0.9:40",
    "mass:1:40",
    "above:0.01:40",
    "above:0:64",
]
SIZES = [2, 3, 10, 257, 5000, 200_000]


def rows(size: int, count: int = 12) -> torch.Tensor:
    """Logits with all that is awkward: sure, unsure, equal, far apart, ruled out, tied."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(count, size, generator=generator) * torch.linspace(0.1, 8, count).unsqueeze(1)
    logits[0] = 0.0
    logits[1] = -torch.inf
    logits[1, size // 2] = 3.0
    logits[2] = -1e4
    logits[2, -1] = 1e4
    logits[3, 0] += 1e4
    logits[4, : size // 2] = -torch.inf
    logits[5] = logits[5].round()
    return logits


def decoded(name: str, logits: torch.Tensor) -> SparseLogits:
    sparse = codec(name).roundtrip(logits)
    assert isinstance(sparse, SparseLogits)
    return sparse


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_a_proper_distribution_over_different_classes(name: str, size: int) -> None:
    logits = rows(size)
    sparse = decoded(name, logits)
    chosen = codec(name)
    assert isinstance(chosen, Packed)
    assert sparse.values.shape == (len(logits), min(chosen.most, size))
    total = torch.logaddexp(sparse.values.double().logsumexp(-1), sparse.rest.double())
    assert float(total.abs().max()) < 2e-5
    assert not sparse.values.isnan().any()
    assert bool((sparse.values[:, :-1] >= sparse.values[:, 1:]).all())
    ordered = sparse.indices.sort(-1).values
    assert bool((ordered[:, 1:] > ordered[:, :-1]).all())
    assert 0 <= int(ordered.min()) <= int(ordered.max()) < size
    # The most probable class is still that, and the decoded whole adds up as well.
    assert torch.equal(logits.gather(-1, sparse.indices[:, :1]).squeeze(-1), logits.amax(-1))
    torch.testing.assert_close(sparse.to_dense().exp().sum(-1), torch.ones(len(logits)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_the_set_is_exact_and_the_values_are_within_the_bound(name: str, size: int) -> None:
    logits, chosen = rows(size), codec(name)
    assert isinstance(chosen, Packed)
    log_probs = logits.double().log_softmax(-1)
    kept = chosen._chosen(logits)
    sparse = decoded(name, logits)
    count = (kept.values > -torch.inf).sum(-1)
    for row in range(len(logits)):
        mine = set(kept.indices[row, : count[row]].tolist())
        assert mine <= set(sparse.indices[row].tolist())
        held = torch.tensor(sorted(mine))
        places = (sparse.indices[row].unsqueeze(0) == held.unsqueeze(1)).int().argmax(1)
        error = (sparse.values[row, places].double() / 2).exp() - (log_probs[row, held] / 2).exp()
        assert float(error.abs().max()) <= float(chosen.bound(logits)[row])
        # What was not kept has the mass of the rest, evenly.
        rest = log_probs[row].exp().index_fill(0, held, 0.0).sum()
        assert float((sparse.to_dense()[row].double().exp().index_fill(0, held, 0.0).sum() - rest).abs()) < 2e-3


def test_the_bound_is_reached_within_an_order_and_shrinks_with_the_bits() -> None:
    logits = rows(5000, 60)
    sparse = decoded("packed:24", logits)
    exact = (logits.log_softmax(-1).gather(-1, sparse.indices) / 2).exp()
    errors = ((sparse.values / 2).exp() - exact).abs()
    assert float(errors.max()) > float(codec("packed:24").bound(logits).max()) / 30
    fine = decoded("packed:24:12", logits)
    exact = (logits.log_softmax(-1).gather(-1, fine.indices) / 2).exp()
    assert float(((fine.values / 2).exp() - exact).abs().max()) < float(errors.max()) / 8


def test_what_each_selection_keeps() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04], [0.97, 0.01, 0.01, 0.005, 0.005]]).log()

    def counts(name: str) -> list[int]:
        return codec(name).encode(logits)["count"].tolist()

    assert counts("packed:3") == [3, 3]
    assert counts("packed:9") == [5, 5]
    assert counts("mass:0.75:5") == [2, 1]
    assert counts("mass:0.85:5") == [3, 1]
    assert counts("mass:0.85:2") == [2, 1]
    assert counts("above:0.05:5") == [4, 1]
    assert counts("above:0.05:3") == [3, 1]
    assert counts("above:0.99:3") == [1, 1]


def test_all_classes_of_a_small_vocabulary_leave_no_rest() -> None:
    sparse = decoded("packed:10:14", rows(10))
    assert torch.isneginf(sparse.rest).all()
    torch.testing.assert_close(sparse.to_dense().exp(), rows(10).softmax(-1), atol=2e-3, rtol=0)


def test_rows_do_not_depend_on_their_neighbours_nor_on_leading_axes() -> None:
    logits, chosen = rows(257), codec("above:0.01:40")
    whole = chosen.roundtrip(logits)
    for row in range(len(logits)):
        alone = chosen.roundtrip(logits[row : row + 1])
        assert torch.equal(alone.values[0], whole.values[row])
        assert torch.equal(alone.indices[0], whole.indices[row])
    shaped = chosen.roundtrip(logits.reshape(3, 2, 2, 257))
    assert torch.equal(shaped.values.reshape(whole.values.shape), whole.values)
    empty = chosen.decode(chosen.encode(logits[:0]), (257,))
    assert empty.values.shape == (0, 40)


def test_sparse_teachers_are_cut_and_short_ones_refused() -> None:
    # Of equal classes any may be kept.
    logits = rows(257)[6:]
    direct, cut = decoded("packed:8", logits), codec("packed:8").roundtrip(SparseLogits.from_dense(logits, 30))
    assert torch.equal(direct.indices, cut.indices)
    torch.testing.assert_close(direct.values, cut.values, atol=1e-2, rtol=0)
    with pytest.raises(UserError, match="packed:64.*K up to 30"):
        codec("packed:64").encode(SparseLogits.from_dense(logits, 30))
    with pytest.raises(UserError, match="rules out every class"):
        codec("packed:8").encode(torch.full((1, 20), -torch.inf))


def test_packed_rows_are_closer_and_smaller_than_plain_ones() -> None:
    """As for a language model: probabilities that fall as a power of the rank, frequent classes first."""
    generator = torch.Generator().manual_seed(1)
    size = 20_000
    order = (torch.arange(size) + torch.randn(300, size, generator=generator) * torch.arange(size) * 0.5).argsort(-1)
    logits = torch.empty(300, size).scatter_(-1, order, -1.3 * torch.arange(1.0, size + 1).log().expand(300, -1))
    teacher = logits.double().log_softmax(-1)

    def measured(name: str) -> tuple[float, float]:
        parts = codec(name).encode(logits)
        sparse = codec(name).decode(parts, (size,))
        divergence = (teacher.exp() * (teacher - sparse.to_dense().double())).sum(-1).mean()
        return sum(part.nbytes for part in parts.values()) / 300, float(divergence)

    plain, packed = measured("topk:32:bfloat16"), measured("packed:64")
    assert packed[1] < plain[1]
    assert packed[0] < 0.6 * 192


@pytest.mark.parametrize("ragged", [False, True])
def test_shards_hold_streams_of_any_sample(tmp_path: Path, ragged: bool) -> None:
    ids, generator = torch.arange(23) * 3, torch.Generator().manual_seed(5)
    logits = torch.randn(23, 6, 400, generator=generator) * 5
    mask = torch.arange(6) < torch.randint(0, 7, (23, 1), generator=generator) if ragged else torch.ones(23, 6).bool()
    with CacheWriter(tmp_path, PARTS, "above:0.02:32", 4, ragged=["logits"] if ragged else []) as writer:
        for part in torch.arange(23).split(7):
            writer.write(ids[part], {"logits": logits[part], "score": ids[part]}, mask=mask[part])
    reader = CacheReader(tmp_path, verify="full")
    expected = codec("above:0.02:32").roundtrip(logits.flatten(0, 1))
    values, classes = expected.values.reshape(23, 6, -1), expected.indices.reshape(23, 6, -1)
    for order in (torch.arange(23), torch.randperm(23), torch.tensor([2, 2, 20]), torch.arange(5, 8), torch.arange(0)):
        read = reader.read(ids[order], names=["logits"], mask=mask[order] if ragged else None)["logits"]
        assert isinstance(read, SparseLogits)
        here = mask[order]
        assert torch.equal(read.values[here], values[order][here])
        assert torch.equal(read.indices[here], classes[order][here])


def test_fields_and_ones_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    width = torch.randint(0, 26, (500,), generator=generator)
    value = torch.randint(0, 2**25, (500,), generator=generator) & ((1 << width) - 1)
    place = width.cumsum(0) - width
    stream = bytes_of(ones_of_fields(place, width, value), int(width.sum()) // 8 + 1)
    assert torch.equal(fields_of(stream, place, width), value)
    assert torch.equal(bytes_of(ones_of(stream), len(stream)), stream)
    groups = Groups(torch.tensor([2, 0, 3, 1]))
    assert groups.before(torch.tensor([5, 1, 2, 3, 4, 9])).tolist() == [0, 5, 0, 2, 5, 0]
    assert groups.total(torch.tensor([5, 1, 2, 3, 4, 9])).tolist() == [6, 0, 9, 9]


@pytest.mark.parametrize("size", [1, 2, 1000, 200_000])
@pytest.mark.parametrize("kind", [0, 1])
def test_partitions_cover_every_class_once(size: int, kind: int) -> None:
    for members in grades(300)[0]:
        starts, widths = partition(size, members, kind)
        assert starts.tolist() == [0, *(starts + (1 << widths))[:-1].tolist()]
        assert int(starts[-1]) < size <= int(starts[-1] + (1 << widths[-1]))
    own, serves = grades(300)
    assert all(own[serves[n]] >= n for n in range(301))


WRONG = ["packed", "packed:0", "packed:9999", "packed:8:0", "packed:8:17", "packed:8:5:5"]
WRONG += ["mass:2:8", "mass:0.5", "above:x:8", "above:-1:8"]


@pytest.mark.parametrize("name", WRONG)
def test_unknown_names_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="above:P:K"):
        codec(name)


def test_names_are_written_in_one_way() -> None:
    for given, name in (
        ("packed:8:5", "packed:8"),
        ("mass:0.90:8", "mass:0.9:8"),
        ("above:1e-3:9:6", "above:0.001:9:6"),
    ):
        assert codec(given).name == codec(name).name == name
