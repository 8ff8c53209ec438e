"""Distilled sets: nothing lost in packing, bytes that are those of the tensors, files that are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.condensation.packing import Forests, Tiles, narrow
from limbeck.condensation.store import DistilledSet
from limbeck.data.computation_trees import ComputationTrees
from limbeck.data.graphs import Graph
from limbeck.errors import UserError
from tests.data.graph_samples import random_graph

TARGET = torch.tensor([0, 1, 1])


def images() -> torch.Tensor:
    return torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def forests(counts: bool = False) -> tuple[Forests, ComputationTrees]:
    trees = ComputationTrees(2)
    roots = [tree for seed in range(3) for tree in trees.roots(random_graph(seed, nodes=5, density=0.6))]
    sets = [roots[:3], roots[2:4], roots[7:8]]
    return Forests(trees, sets, [[1.5, 2.0, 1.0], [1.0, 1.0], [3.25]] if counts else None), trees


def same_graph(one: Graph, other: Graph) -> bool:
    edges = [sorted(zip(*graph.edges.tolist(), graph.edge_labels.tolist())) for graph in (one, other)]
    return torch.equal(one.nodes, other.nodes) and edges[0] == edges[1]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 255], torch.uint8),
        ([-1, 5], torch.int8),
        ([0, 256], torch.int16),
        ([0, 40_000], torch.int32),
        ([0, 2**40], torch.int64),
    ],
)
def test_whole_numbers_take_the_smallest_type(values: list[int], kind: torch.dtype) -> None:
    assert narrow(torch.tensor(values)).dtype == kind
    assert narrow(torch.tensor(values)).tolist() == values


def test_images_keep_their_numbers_and_soft_labels() -> None:
    soft = torch.rand(3, 2)
    made = DistilledSet.of(images(), soft)
    assert made.bytes == 3 * 16 * 4 + 3 * 2 * 4
    assert torch.equal(made.split().input, images())
    assert torch.equal(made.split().labels, soft)
    assert DistilledSet.of((255 * images()).to(torch.uint8), TARGET).bytes == 3 * 16 + 3


def test_a_mapping_of_tensors_comes_back() -> None:
    made = DistilledSet.of({"ids": torch.tensor([[1, 300], [2, 0], [3, 3]]), "mask": torch.ones(3, 2).bool()}, TARGET)
    assert made.bytes == 6 * 2 + 6 + 3
    assert made.samples["ids"].tolist() == [[1, 300], [2, 0], [3, 3]]
    assert made.samples["ids"].dtype == torch.int64, "what embeddings take"
    assert made.samples["mask"].dtype == torch.bool


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, torch.float16])
def test_numbers_come_back_in_their_type(kind: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[1], [2], [3]], dtype=kind)
    made = DistilledSet.of(values, TARGET)
    read = DistilledSet.load(made.save(tmp_path / "set.safetensors"))
    assert read.samples.dtype == kind
    assert torch.equal(read.samples, values)


def test_undirected_edges_are_stored_once() -> None:
    graphs = [random_graph(seed, density=0.5) for seed in range(3)]
    made = DistilledSet.of(graphs, TARGET)
    nodes, edges = sum(len(graph) for graph in graphs), sum(len(graph.edge_labels) for graph in graphs) // 2
    assert made.kind == "graphs_undirected"
    assert made.bytes == 3 + nodes + 3 + 2 * edges + edges + 3
    assert all(same_graph(one, other) for one, other in zip(made.samples, graphs, strict=True))


def test_directed_graphs_with_pooling_come_back() -> None:
    found, trees = forests(counts=True)
    written = [trees.expand(tree) for tree in found.sets[0]]
    made = DistilledSet.of(written, TARGET)
    assert made.kind == "graphs"
    for one, other in zip(made.samples, written, strict=True):
        assert same_graph(one, other)
        assert torch.equal(one.pool, other.pool)
    whole = DistilledSet.of([random_graph(0), *written[:2]], TARGET).samples
    assert whole[0].pool.tolist() == [1.0] * 9


@pytest.mark.parametrize("counts", [False, True])
def test_forests_come_back_as_graphs_with_marked_roots(counts: bool) -> None:
    found, trees = forests(counts)
    made = DistilledSet.of(found, TARGET, torch.tensor([3, 2, 1]))
    for position, (graph, ids) in enumerate(zip(made.samples, found.sets, strict=True)):
        assert graph.pool is not None
        roots = [tree for tree, pool in zip(trees.roots(graph), graph.pool.tolist()) if pool]
        assert roots == list(ids)
        expected = found.counts[position] if found.counts else [1.0] * len(ids)
        assert graph.pool[graph.pool > 0].tolist() == expected


def test_what_trees_share_is_stored_once() -> None:
    found, trees = forests()
    shared = DistilledSet.of(found, TARGET)
    twice = Forests(trees, [*found.sets, *found.sets])
    added = DistilledSet.of(twice, torch.cat([TARGET, TARGET])).bytes - shared.bytes
    assert added == sum(len(one) for one in found.sets) + 3 + 3, (
        "a repeated set costs its ids, its length and its class"
    )


@pytest.mark.parametrize("kind", ["images", "graphs", "forests"])
def test_files_hold_the_whole_set(kind: str, tmp_path: Path) -> None:
    samples = {"images": images(), "graphs": [random_graph(seed) for seed in range(3)], "forests": forests()[0]}[kind]
    made = DistilledSet.of(samples, TARGET, torch.tensor([0.5, 0.25, 0.25]), {"made by": "test"})
    path = made.save(tmp_path / "set.safetensors")
    read = DistilledSet.load(path)
    assert (read.kind, read.bytes, len(read), dict(read.about)) == (made.kind, made.bytes, 3, {"made by": "test"})
    assert torch.equal(read.target, made.target)
    assert read.weight is not None
    assert read.weight.tolist() == [0.5, 0.25, 0.25]
    assert all(torch.equal(read.tensors[name], value) for name, value in made.tensors.items())
    assert 0 < path.stat().st_size - made.bytes < 1200, "the header is all that comes on top"


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="distilled set: .*nothing.safetensors"):
        DistilledSet.load(tmp_path / "nothing.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="a file of the format limbeck-distilled-1"):
        DistilledSet.load(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"1234567890")
    with pytest.raises(UserError, match="distilled set"):
        DistilledSet.load(tmp_path / "torn.safetensors")


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="distilled target: given 2 rows"):
        DistilledSet.of(images(), TARGET[:2])
    with pytest.raises(UserError, match="distilled weight"):
        DistilledSet.of(images(), TARGET, torch.zeros(3))
    with pytest.raises(UserError, match="samples: given list"):
        DistilledSet.of(["text"], TARGET[:1])  # type: ignore[list-item]


def test_tiles_share_a_label_or_have_their_own() -> None:
    pixels = (torch.arange(2 * 3 * 4 * 4) % 256).to(torch.uint8).view(2, 3, 4, 4)
    shared = DistilledSet.of(Tiles(pixels, 2), torch.tensor([4, 7]), torch.tensor([1.0, 3.0]))
    assert len(shared) == 8
    assert shared.bytes == 2 * 48 + 1 + 2 + 2 * 4
    assert shared.split().labels.tolist() == [4] * 4 + [7] * 4
    assert shared.sample_weight is not None
    assert shared.sample_weight.tolist() == [1.0] * 4 + [3.0] * 4
    soft = DistilledSet.of(Tiles(pixels, 2), torch.rand(8, 10).half())
    assert soft.bytes == 2 * 48 + 1 + 8 * 10 * 2
    assert soft.split().labels.dtype == torch.float32
    with pytest.raises(UserError, match="distilled target: given 3 rows"):
        DistilledSet.of(Tiles(pixels, 2), TARGET)


def test_tiles_are_read_back(tmp_path: Path) -> None:
    pixels = torch.randint(256, (2, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = DistilledSet.of(Tiles(pixels), torch.tensor([0, 1]))
    read = DistilledSet.load(made.save(tmp_path / "tiles.safetensors"))
    torch.testing.assert_close(read.split().input, pixels.float() / 255)
