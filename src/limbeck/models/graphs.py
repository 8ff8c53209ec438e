"""Reference networks on graphs with categorical labels: GIN, GCN and GAT, sum pooling, linear head.

The recipe is that of the graph-condensation papers: an embedding per node label, no normalisation, the last layer's
values pooled ("jumping knowledge: last"), dropout between layers and before the head. They take the batches of
``data.graphs.collate`` as keyword arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.nn.message_passing import GATLayer, GCNLayer, GINLayer
from limbeck.nn.pooling import masked_pool

LAYERS = {"gin": GINLayer, "gcn": GCNLayer, "gat": GATLayer}


class GraphNetwork(nn.Module):
    """Layers of one kind between an embedding of the labels and a pooled linear head.

    Taps: ``nodes`` (embeddings), ``layers.0`` ... (``[N, width]``), ``head`` (logits).

    Args:
        kind: ``gin``, ``gcn`` or ``gat``.
        node_labels, edge_labels: number of known labels; ids reach from 0 (unknown, an embedding of zeros) to these,
            and ids beyond count as unknown too.
        classes: number of logits.
        width, layers, dropout: of the message passing.
        pooling: ``sum``, ``mean`` or ``max`` over the nodes that count.
    """

    def __init__(
        self,
        kind: str,
        node_labels: int,
        edge_labels: int,
        classes: int,
        *,
        width: int = 64,
        layers: int = 2,
        dropout: float = 0.0,
        pooling: str = "sum",
    ) -> None:
        super().__init__()
        if kind not in LAYERS:
            raise UserError("graph network", kind, LAYERS)
        if layers < 1:
            raise UserError("layers", layers, "1 or more")
        self.nodes = nn.Embedding(node_labels + 1, width, padding_idx=0)
        # A table of edge embeddings per layer, as each layer has values of its own.
        self.edges = nn.ModuleList(nn.Embedding(edge_labels + 1, width, padding_idx=0) for _ in range(layers))
        self.layers = nn.ModuleList(LAYERS[kind](width, width) for _ in range(layers))
        self.dropout, self.pooling = nn.Dropout(dropout), pooling
        self.head = nn.Linear(width, classes)

    def embed(self, nodes: Tensor, edges: Tensor, edge_labels: Tensor) -> Tensor:
        """Values of every node after the last layer, ``[N, width]``."""
        values = self.nodes(_known(nodes, self.nodes))
        for position, (layer, table) in enumerate(zip(self.layers, self.edges, strict=True)):
            if position:
                values = self.dropout(functional.relu(values))
            values = layer(values, edges, table(_known(edge_labels, table)))
        embedded: Tensor = values
        return embedded

    def forward(
        self, nodes: Tensor, edges: Tensor, edge_labels: Tensor, offsets: Tensor, pool: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, classes]`` of a batch of graphs; see ``data.graphs.collate``."""
        pooled = masked_pool(self.embed(nodes, edges, edge_labels), offsets, pool, self.pooling)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def _known(ids: Tensor, table: nn.Module) -> Tensor:
    return torch.where(ids < len(table.weight), ids, 0)  # type: ignore[arg-type]
