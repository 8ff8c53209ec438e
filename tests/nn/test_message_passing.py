"""GIN, GCN and GAT: equal to torch-geometric's layers, and to the formula with edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.nn.message_passing import GATLayer, GCNLayer, GINLayer
from tests.data.graph_samples import random_graph

GRAPH = random_graph(2, nodes=8)
VALUES = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
EDGES, COUNT = GRAPH.edges, GRAPH.edges.shape[1]


def edge_values(width: int) -> Tensor:
    return torch.randn(COUNT, width, generator=torch.Generator().manual_seed(2))


def test_gin_is_torch_geometrics() -> None:
    from torch_geometric.nn import GINEConv

    ours = GINLayer(6, 8)
    theirs = GINEConv(ours.mlp)
    torch.testing.assert_close(ours(VALUES, EDGES, edge_values(6)), theirs(VALUES, EDGES, edge_values(6)))


def test_gcn_without_edge_values_is_torch_geometrics() -> None:
    from torch_geometric.nn import GCNConv

    ours, theirs = GCNLayer(6, 8), GCNConv(6, 8)
    theirs.lin.weight, theirs.bias = ours.linear.weight, ours.bias
    torch.testing.assert_close(ours(VALUES, EDGES, torch.zeros(COUNT, 8)), theirs(VALUES, EDGES))


def test_gat_without_edge_values_is_torch_geometrics() -> None:
    from torch_geometric.nn import GATConv

    ours, theirs = GATLayer(6, 8, heads=2), GATConv(6, 4, heads=2)
    theirs.lin.weight, theirs.att_src, theirs.att_dst = ours.linear.weight, ours.from_source, ours.from_target
    theirs.bias = ours.bias
    torch.testing.assert_close(ours(VALUES, EDGES, torch.zeros(COUNT, 8)), theirs(VALUES, EDGES))


def test_gat_with_edges_is_its_formula() -> None:
    layer, marks = GATLayer(6, 8, heads=1), edge_values(8)
    moved = VALUES @ layer.linear.weight.T
    for node in range(8):
        arriving = (EDGES[1] == node).nonzero().squeeze(-1).tolist()
        content = torch.stack([moved[node], *(moved[EDGES[0, e]] + marks[e] for e in arriving)])
        of_edges = torch.stack([torch.tensor(0.0), *(marks[e] @ layer.from_edge[0, 0] for e in arriving)])
        senders = torch.stack([moved[node], *(moved[EDGES[0, e]] for e in arriving)])
        scores = senders @ layer.from_source[0, 0] + moved[node] @ layer.from_target[0, 0] + of_edges
        shares = torch.nn.functional.leaky_relu(scores, 0.2).softmax(0)
        torch.testing.assert_close(layer(VALUES, EDGES, marks)[node], shares @ content + layer.bias)


@pytest.mark.parametrize("kind", [GINLayer, GCNLayer, GATLayer])
def test_a_graph_without_edges_works(kind: type[torch.nn.Module]) -> None:
    out = kind(6, 8)(VALUES, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 6 if kind is GINLayer else 8))
    assert out.shape == (8, 8)
    assert bool(out.isfinite().all())


def test_attention_survives_huge_scores() -> None:
    layer = GATLayer(6, 8)
    out = layer(1e4 * VALUES, EDGES, edge_values(8))
    out.sum().backward()
    assert bool(out.isfinite().all())
    assert layer.linear.weight.grad is not None
    assert bool(layer.linear.weight.grad.isfinite().all())


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="heads: given 3; allowed: a divisor of the width, 8"):
        GATLayer(6, 8, heads=3)
