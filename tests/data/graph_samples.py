"""Small random labelled graphs for tests."""

from __future__ import annotations

import random

import torch

from limbeck.data.graphs import Graph


def random_graph(seed: int, *, nodes: int = 9, labels: int = 3, edge_labels: int = 2, density: float = 0.3) -> Graph:
    """An undirected graph; it may have isolated nodes."""
    generator = random.Random(seed)
    pairs = [(a, b) for a in range(nodes) for b in range(a) if generator.random() < density]
    marks = [generator.randint(1, edge_labels) for _ in pairs]
    index = torch.tensor([*pairs, *((b, a) for a, b in pairs)], dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return Graph(
        torch.tensor([generator.randint(1, labels) for _ in range(nodes)]), index, torch.tensor(marks + marks).long()
    )
