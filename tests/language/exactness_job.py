"""One training step of a language model: in one process by import, in two as a script (Lightning's launcher)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.language import Decoding, OnPolicy, SequenceDistiller, Sequences
from limbeck.objectives import parse_objective
from limbeck.systems.language.multi_granularity.identities import END, PAD, network, texts

COUNT = 12
DESCENT = OptimizerSettings("sgd", lr=1.0, weight_decay=0.0, schedule="constant")
# The first step of Nesterov's momentum of 0.9.
STRIDE = 1.9
OBJECTIVES = ("kl", "0.3 * reverse_kl(temperature=2) + jensen_shannon", 'kl(estimator="topk", k=5)')


def data() -> Sequences:
    """Texts of different lengths, of which one has no answer and one an answer that counts only in part."""
    given = texts(COUNT, seed=3, longest=9, answer=12)
    learnt = given.answer_mask.clone()
    learnt[2] = False
    learnt[5, :2] = False
    # The micro-batches hold very different numbers of tokens.
    learnt[:3, 1:] = False
    return Sequences.of({**given.columns(), "learnt": learnt})


def step(
    batch_size: int, *, objective: str = "kl", accumulate: int = 1, on_policy: bool = False, **options: Any
) -> dict[str, Any]:
    """Loss and gradient of one optimiser step over all texts, as plain stochastic gradient descent shows it."""
    writer = OnPolicy(Decoding(6, END, PAD)) if on_policy else None
    one = SequenceDistiller(
        network().double(), parse_objective(objective), network(1).double(), writer=writer,
        optimizer=DESCENT,
    )  # fmt: skip
    before = {name: value.detach().clone() for name, value in one.student.state_dict().items()}
    loader = TensorLoader({"input": data().columns()}, batch_size, shuffle=False)
    settings = {"accelerator": "cpu", "log_every": 1, "accumulate_grad_batches": accumulate, **options}
    history = fit(one, loader, steps=1, **settings)
    gradient: dict[str, Tensor] = {
        name: (before[name] - value.detach()) / STRIDE for name, value in one.student.state_dict().items()
    }
    return {"loss": history.lines[-1]["loss"], "gradient": gradient}


def main(out: Path) -> None:
    found = {
        "whole": step(COUNT, devices=2, strategy="ddp"),
        "accumulated": step(4, accumulate=3, devices=2, strategy="ddp"),
    }
    rank = torch.distributed.get_rank()
    torch.save(found, out / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
