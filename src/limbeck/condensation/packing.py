"""How samples lie in a file: the fewest bytes that plain tensors allow, without loss.

Whole numbers take the smallest integer type that holds them. An undirected edge is stored once. Computation trees are
stored as they are interned, label and children, so that what two trees share is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.data.computation_trees import ComputationTrees, forest
from limbeck.data.graphs import Graph, undirected
from limbeck.errors import UserError

Tensors = dict[str, Tensor]
# Before the name of a tensor that was int64 before it was packed.
_WIDE = "int64:"
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Forests:
    """Samples that are sets of computation trees.

    Attributes:
        trees: the pool.
        sets: tree ids of every sample.
        counts: how much each root counts in pooling, for every sample; 1 without.
    """

    trees: ComputationTrees
    sets: Sequence[Sequence[int]]
    counts: Sequence[Sequence[float]] | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.sets)


@dataclass(frozen=True)
class Tiles:
    """Samples that are images of eight bits, each of which may hold several.

    Attributes:
        pixels: uint8 ``[N, C, H, W]``.
        factor: tiles per side; an image holds ``factor^2`` samples, row by row.
    """

    pixels: Tensor
    factor: int = 1

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.pixels) * self.factor**2


def decode_tiles(pixels: Tensor, factor: int) -> Tensor:
    """Images ``[N, C, H, W]`` cut into ``factor^2`` tiles, each enlarged to ``[C, H, W]``: ``[N * factor^2, C, H, W]``.

    A side that ``factor`` does not divide is first filled up with grey (0.5) to the right and below.
    """
    if factor == 1:
        return pixels
    height, width = pixels.shape[-2:]
    sides = -(-height // factor), -(-width // factor)
    padding = (0, factor * sides[1] - width, 0, factor * sides[0] - height)
    padded = functional.pad(pixels, padding, value=0.5) if any(padding) else pixels
    grid = padded.view(len(pixels), -1, factor, sides[0], factor, sides[1]).permute(0, 2, 4, 1, 3, 5)
    tiles = grid.reshape(len(pixels) * factor**2, -1, *sides)
    return functional.interpolate(tiles, (height, width), mode="bilinear", align_corners=False)


def narrow(values: Tensor) -> Tensor:
    """Whole numbers in the smallest integer type that holds them all; other numbers as they are."""
    if values.dtype == torch.bool or values.is_floating_point():
        return values
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    for kind in _INTEGERS:
        if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max:
            return values.to(kind)
    return values


def pack(samples: Any) -> tuple[str, Tensors]:
    """The kind of ``samples`` and their tensors: a tensor, a mapping of tensors, graphs, :class:`Forests` or
    :class:`Tiles`."""
    if isinstance(samples, Tensor):
        return "tensor", dict([_stored("input", samples)])
    if isinstance(samples, Mapping):
        return "tensors", dict(_stored(f"input.{name}", values) for name, values in samples.items())
    if isinstance(samples, Forests):
        return "forests", _pack_forests(samples)
    if isinstance(samples, Tiles):
        return "tiles", {"pixels": samples.pixels, "factor": torch.tensor([samples.factor], dtype=torch.uint8)}
    if isinstance(samples, Sequence) and samples and all(isinstance(one, Graph) for one in samples):
        mirrored = all(undirected(graph) for graph in samples)
        return ("graphs_undirected" if mirrored else "graphs"), _pack_graphs(samples, mirrored)
    raise UserError("samples", type(samples).__name__, "a tensor, a mapping of tensors, graphs, forests or tiles")


def _stored(name: str, values: Tensor) -> tuple[str, Tensor]:
    """Ids of words must come back as int64, which embeddings ask for, and images of bytes as bytes."""
    return (f"{_WIDE}{name}", narrow(values)) if values.dtype == torch.int64 else (name, values)


def _restored(tensors: Tensors) -> Tensors:
    return {
        name.removeprefix(_WIDE): values.long() if name.startswith(_WIDE) else values
        for name, values in tensors.items()
    }


def unpack(kind: str, tensors: Tensors) -> Any:
    """The samples that ``pack`` was given; forests come back as graphs with their roots marked."""
    if kind not in _UNPACK:
        raise UserError("kind of samples", kind, _UNPACK)
    return _UNPACK[kind](tensors)


def _pack_graphs(graphs: Sequence[Graph], mirrored: bool) -> Tensors:
    kept = [graph.edges[0] < graph.edges[1] if mirrored else slice(None) for graph in graphs]
    edges = [graph.edges[:, keep] for graph, keep in zip(graphs, kept, strict=True)]
    labels = [graph.edge_labels[keep] for graph, keep in zip(graphs, kept, strict=True)]
    tensors = {
        "node_count": torch.tensor([len(graph) for graph in graphs]),
        "nodes": torch.cat([graph.nodes for graph in graphs]),
        "edge_count": torch.tensor([len(one) for one in labels]),
        "edges": torch.cat(edges, dim=1),
        "edge_labels": torch.cat(labels),
    }
    if any(graph.pool is not None for graph in graphs):
        pools = torch.cat([torch.ones(len(graph)) if graph.pool is None else graph.pool for graph in graphs])
        tensors["pool"] = pools.to(torch.uint8) if torch.equal(pools, pools.to(torch.uint8).float()) else pools.half()
    return {name: narrow(values) for name, values in tensors.items()}


def _unpack_graphs(tensors: Tensors, mirrored: bool) -> list[Graph]:
    sizes, counts = tensors["node_count"].tolist(), tensors["edge_count"].tolist()
    nodes, labels = tensors["nodes"].long().split(sizes), tensors["edge_labels"].long().split(counts)
    edges = tensors["edges"].long().split(counts, dim=1)
    pools = tensors["pool"].float().split(sizes) if "pool" in tensors else [None] * len(sizes)
    if mirrored:
        edges = tuple(torch.cat([one, one.flip(0)], dim=1) for one in edges)
        labels = tuple(torch.cat([one, one]) for one in labels)
    return [Graph(*parts) for parts in zip(nodes, edges, labels, pools, strict=True)]


def _pack_forests(forests: Forests) -> Tensors:
    trees = forests.trees
    needed, queue = set[int](), [tree for one in forests.sets for tree in one]
    while queue:
        tree = queue.pop()
        if tree not in needed:
            needed.add(tree)
            queue += [kid for _, kid in trees.children(tree)]
    # Children were interned before their parents, so ascending ids can be read back in one pass.
    place = {tree: position for position, tree in enumerate(sorted(needed))}
    children = [trees.children(tree) for tree in place]
    tensors = {
        "labels": torch.tensor([trees.label(tree) for tree in place]),
        "child_count": torch.tensor([len(one) for one in children]),
        "child_edges": torch.tensor([edge for one in children for edge, _ in one], dtype=torch.int64),
        "children": torch.tensor([place[kid] for one in children for _, kid in one], dtype=torch.int64),
        "set_count": torch.tensor([len(one) for one in forests.sets]),
        "sets": torch.tensor([place[tree] for one in forests.sets for tree in one], dtype=torch.int64),
    }
    packed = {name: narrow(values) for name, values in tensors.items()}
    if forests.counts is not None:
        packed["counts"] = torch.tensor([count for one in forests.counts for count in one]).half()
    return packed


def _unpack_forests(tensors: Tensors) -> list[Graph]:
    counts = tensors["child_count"].tolist()
    kids, marks = tensors["children"].long().split(counts), tensors["child_edges"].long().split(counts)
    # What was stored is as large as it may be; depth plays no part in reading.
    trees, ids = ComputationTrees(1, largest=2**62), list[int]()
    for label, below, edges in zip(tensors["labels"].tolist(), kids, marks, strict=True):
        ids.append(trees.intern(label, ((edge, ids[kid]) for edge, kid in zip(edges.tolist(), below.tolist()))))
    sizes = tensors["set_count"].tolist()
    sets = [[ids[place] for place in one.tolist()] for one in tensors["sets"].long().split(sizes)]
    if "counts" not in tensors:
        return [forest(trees, one) for one in sets]
    weights = tensors["counts"].float().split(sizes)
    return [forest(trees, one, weight.tolist()) for one, weight in zip(sets, weights, strict=True)]


_UNPACK: dict[str, Callable[[Tensors], Any]] = {
    "tensor": lambda tensors: _restored(tensors)["input"],
    "tensors": lambda tensors: {name.removeprefix("input."): one for name, one in _restored(tensors).items()},
    "graphs": lambda tensors: _unpack_graphs(tensors, mirrored=False),
    "graphs_undirected": lambda tensors: _unpack_graphs(tensors, mirrored=True),
    "forests": _unpack_forests,
    "tiles": lambda tensors: decode_tiles(tensors["pixels"].float() / 255, int(tensors["factor"])),
}
