"""Mirage on torch-geometric graphs: a data set in, a distilled data set out, any conv stack trained on it.

Synthetic molecules stand for a TUDataset or an ogb graph property set: ``x`` holds categories of atoms, ``edge_attr``
categories of bonds. Run with: python examples/mirage.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINEConv, global_add_pool

from limbeck.condensation import DistilledSet
from limbeck.data.graphs import from_pyg, tables_of_pyg, to_pyg
from limbeck.systems.graphs.mirage.method import Mirage

HOPS = 2


class Network(nn.Module):
    """An ordinary torch-geometric network; ``root_mask`` is all that the distilled set asks of it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.atoms, self.charges, self.bonds = nn.Embedding(10, width), nn.Embedding(3, width), nn.Embedding(4, width)
        self.convs = nn.ModuleList(
            GINEConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))) for _ in range(HOPS)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, data: Data) -> Tensor:
        values = self.atoms(data.x[:, 0]) + self.charges(data.x[:, 1])
        marks = self.bonds(data.edge_attr[:, 0])
        for conv in self.convs:
            values = conv(values, data.edge_index, marks).relu()
        if "root_mask" in data:
            values = values * data.root_mask.unsqueeze(-1)
        logits: Tensor = self.head(global_add_pool(values, data.batch, size=data.num_graphs))
        return logits


def molecule(label: int, generator: torch.Generator) -> Data:
    """A chain of carbons; those of class 1 carry a charged nitrogen with two oxygens."""
    chain = int(torch.randint(5, 9, (1,), generator=generator))
    atoms, pairs = [(6, 1)] * chain, [(i, i + 1, 1) for i in range(chain - 1)]
    hooked = int(torch.randint(chain, (1,), generator=generator))
    group = [(7, 2), (8, 1), (8, 0)] if label else [(8, 1), (6, 1), (6, 1)]
    atoms += group
    pairs += [(hooked, chain, 1), (chain, chain + 1, 2 if label else 1), (chain, chain + 2, 1)]
    index = torch.tensor([(a, b) for a, b, _ in pairs] + [(b, a) for a, b, _ in pairs]).T
    bonds = torch.tensor([[bond] for *_, bond in pairs] * 2)
    return Data(x=torch.tensor(atoms), edge_index=index.contiguous(), edge_attr=bonds, y=torch.tensor([label]))


def train(network: nn.Module, loader: DataLoader, steps: int) -> None:
    """Plain supervised training."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    done = 0
    while done < steps:
        for batch in loader:
            loss = nn.functional.cross_entropy(network(batch), batch.y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            done += 1


def main(count: int = 120, steps: int = 60) -> float:
    """Accuracy on real graphs of a network that saw distilled ones only."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data = [molecule(number % 2, generator) for number in range(count)]
    training, test = data[: 3 * count // 4], data[3 * count // 4 :]

    nodes, edges = tables_of_pyg(training)
    graphs = [from_pyg(one, nodes, edges) for one in training]
    # What trees share is stored once, so that 600 bytes hold enough sets.
    miner = Mirage(HOPS, budget=600, storage="shared")
    distilled: DistilledSet = miner.fit_transform(graphs, torch.cat([one.y for one in training]))
    split = distilled.split()
    small = [
        to_pyg(graph, nodes, edges, y=torch.tensor([label]))
        for graph, label in zip(split.input, split.labels.tolist(), strict=True)
    ]
    assert distilled.weight is not None
    sampler = torch.utils.data.WeightedRandomSampler(distilled.weight.double().tolist(), 256)

    network = Network()
    train(network, DataLoader(small, batch_size=32, sampler=sampler), steps)
    network.eval()
    with torch.inference_mode():
        batch = next(iter(DataLoader(test, batch_size=len(test))))
        accuracy = float((network(batch).argmax(-1) == batch.y).double().mean())
    real = DistilledSet.of(graphs, torch.cat([one.y for one in training])).bytes
    print(f"{len(training)} graphs of {real} bytes became {len(small)} forests of {distilled.bytes} bytes")
    print(f"accuracy on {len(test)} real graphs: {accuracy:.2f}")
    return accuracy


if __name__ == "__main__":
    main()
