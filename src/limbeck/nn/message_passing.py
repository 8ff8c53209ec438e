"""Message-passing layers on edge lists, in plain torch: GIN, GCN and GAT, each with labelled edges.

All take ``values`` ``[N, in]``, ``edges`` int64 ``[2, E]`` (messages flow from row 0 to row 1) and ``edge_values``
``[E, in]`` or ``[E, out]`` as stated, and return ``[N, out]``. With edge values of zero they are torch-geometric's
``GINEConv``, ``GCNConv`` and ``GATConv``; there is no compiled dependency.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError


def gather_messages(messages: Tensor, target: Tensor, count: int) -> Tensor:
    """Sum of the messages ``[E, ...]`` that arrive at each of ``count`` nodes."""
    # On the CPU this is three times as fast as index_add.
    index = target.reshape(-1, *[1] * (messages.dim() - 1)).expand_as(messages)
    return messages.new_zeros(count, *messages.shape[1:]).scatter_add(0, index, messages)


def at(values: Tensor, nodes: Tensor) -> Tensor:
    """Rows ``[E, ...]`` of ``values`` ``[N, ...]``; its backward takes half the time of indexing's."""
    return values.index_select(0, nodes)


class GINLayer(nn.Module):
    """out_v = MLP(x_v + sum_{u -> v} relu(x_u + e_uv)): Xu et al., arXiv:1810.00826; with edges Hu et al.,
    arXiv:1905.12265. Edge values are ``[E, in]``."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, values: Tensor, edges: Tensor, edge_values: Tensor) -> Tensor:
        messages = functional.relu(at(values, edges[0]) + edge_values)
        out: Tensor = self.mlp(values + gather_messages(messages, edges[1], len(values)))
        return out


class GCNLayer(nn.Module):
    """out_v = sum_{u -> v, u = v} (W x_u + e_uv) / sqrt(d_u d_v) + b, with d the number of incoming edges and 1 for the
    node itself (Kipf and Welling, arXiv:1609.02907). Edge values are ``[E, out]``.

    The factor 1 / sqrt(d_u) looks one hop further than the sum does: a leaf of a computation tree has no incoming
    edges, so in a network of as many layers as the tree has hops it weighs too much.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, values: Tensor, edges: Tensor, edge_values: Tensor) -> Tensor:
        moved, (source, target) = self.linear(values), edges
        degree = 1 + gather_messages(values.new_ones(len(target)), target, len(values))
        scale = degree.rsqrt()
        messages = (at(moved, source) + edge_values) * (scale[source] * scale[target]).unsqueeze(-1)
        mixed: Tensor = gather_messages(messages, target, len(values)) + moved / degree.unsqueeze(-1) + self.bias
        return mixed


class GATLayer(nn.Module):
    """out_v = sum_{u -> v, u = v} a_uv (W x_u + e_uv) + b, a = softmax over u of
    leaky_relu(s . W x_u + t . W x_v + r . e_uv), per head (Velickovic et al., arXiv:1710.10903). Edge values are
    ``[E, out]``, 0 for the node itself; ``heads`` divides ``width``.
    """

    def __init__(self, features: int, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise UserError("heads", heads, f"a divisor of the width, {width}")
        self.linear = nn.Linear(features, width, bias=False)
        self.from_source, self.from_target, self.from_edge = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, heads, width // heads))) for _ in range(3)
        )
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, values: Tensor, edges: Tensor, edge_values: Tensor) -> Tensor:
        count = len(values)
        moved = self.linear(values).reshape(count, *self.from_source.shape[1:])
        marks = edge_values.reshape(len(edge_values), *self.from_edge.shape[1:])
        at_source, at_target = (moved * self.from_source).sum(-1), (moved * self.from_target).sum(-1)
        (source, target), own = edges, torch.arange(count, device=edges.device)
        scores = torch.cat(
            [at(at_source, source) + at(at_target, target) + (marks * self.from_edge).sum(-1), at_source + at_target]
        )
        scores, arriving = functional.leaky_relu(scores, 0.2), torch.cat([target, own])
        # The largest score is a constant of the softmax: no gradient has to pass it.
        highest = scores.new_full((count, scores.shape[1]), -torch.inf)
        index = arriving.unsqueeze(-1).expand_as(scores)
        highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
        shares = (scores - highest[arriving]).exp()
        shares = shares / at(gather_messages(shares, arriving, count), arriving)
        messages = torch.cat([at(moved, source) + marks, moved]) * shares.unsqueeze(-1)
        return gather_messages(messages, arriving, count).flatten(1) + self.bias
