"""What the distributed tests run: in one process by import, in two as a script (Lightning's launcher, or torchrun)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from limbeck import losses
from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, Interrupted, OptimizerSettings, PeerDistiller, Phase, fit, run_program
from limbeck.objectives import (
    DIST,
    KL,
    CrossEntropy,
    FeatureMSE,
    FeatureObjective,
    InfoNCE,
    LogitObjective,
    Objective,
    SimilarityDistribution,
)
from limbeck.sources import EMA, ClassVectors, Live, Source
from tests.engine.helpers import Cut, Die, distiller, loader, states

# The last batch has 3 samples, which two processes cannot share equally; nor can they share the mask.
COUNT, BATCH_SIZE = 35, 8


class Net(nn.Module):
    """Has a layer that no loss reads, as language models do."""

    def __init__(self, seed: int, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head, self.unused = nn.Linear(6, width), nn.Linear(width, 5), nn.Linear(3, 3)
        # So that the order of summation, which differs, hardly shows.
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        embedding = self.body(x).tanh()
        return {"embedding": embedding, "logits": self.head(embedding), "query": embedding, "document": x @ _FIXED}


_FIXED = torch.randn(6, 12, generator=torch.Generator().manual_seed(4)).double()


def data() -> TensorLoader:
    generator = torch.Generator().manual_seed(0)
    columns = {
        "input": torch.randn(COUNT, 6, generator=generator).double(),
        "target": torch.arange(COUNT) % 5,
        "id": torch.arange(COUNT) + 100,
        "mask": torch.arange(COUNT) % 3 != 0,
        "weight": torch.rand(COUNT, generator=generator),
    }
    return TensorLoader(columns, BATCH_SIZE, seed=2)


def vectors() -> ClassVectors:
    return ClassVectors(torch.randn(5, 12, generator=torch.Generator().manual_seed(7)).double())


class AgainstTable(Objective):
    """Batch-wise, with a table that must not be gathered as if it were rows."""

    batchwise = True

    def __init__(self) -> None:
        super().__init__()
        self.needs = FeatureMSE(teacher="class_vectors").needs

    def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
        scores = student["embedding"] @ teacher["class_vectors"].T
        assert scores.shape == (len(batch["target"]), 5)
        value = losses.cross_entropy(scores - scores.mean(0), batch["target"], mask=batch["mask"])
        return {"table": value}


def student(objective: Objective, teacher: Any = None, width: int = 12) -> Distiller:
    settings, network = OptimizerSettings("sgd", lr=0.1, schedule="constant"), Net(0, width)
    source = teacher if teacher is None or isinstance(teacher, Source) else teacher(network)
    return Distiller(network, objective, source, optimizer=settings)


def peers() -> PeerDistiller:
    goals = {name: CrossEntropy() + KL(2.0) for name in "ab"}
    settings = OptimizerSettings("sgd", lr=0.1, schedule="constant")
    return PeerDistiller({"a": Net(0), "b": Net(1, 7)}, goals, optimizers=settings)


CASES: dict[str, Callable[[], Any]] = {
    "rows": lambda: student(0.5 * CrossEntropy() + 0.5 * KL(2.0), Live(Net(9))),
    "sum": lambda: student(0.01 * LogitObjective(losses.forward_kl, name="kl", reduction="sum"), Live(Net(9))),
    "batch": lambda: student(DIST() + SimilarityDistribution() + CrossEntropy(), Live(Net(9, 20))),
    "contrast": lambda: student(InfoNCE() + AgainstTable(), vectors()),
    "projector": lambda: student(
        FeatureMSE() + FeatureObjective(losses.similarity_preserving, name="sp", projector="none"),
        Live(Net(9, 20)),
    ),
    "average": lambda: student(CrossEntropy() + KL(), lambda network: EMA(network, 0.5)),
    "peers": peers,
}


class Gradients(Callback):
    """The gradients of the first step and of the last batch, which is short."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})


def run_case(name: str, **options: Any) -> dict[str, Any]:
    module, gradients = CASES[name](), Gradients()
    history = fit(module, data(), epochs=2, log_every=1, seed=5, callbacks=[gradients], accelerator="cpu", **options)
    return {"lines": history.lines, "gradients": gradients.seen, "weights": module.state_dict()}


# What only two processes can show.


def resumed(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Dropout draws in every process, and a cut run goes on with every process's numbers."""

    def train(folder: str, *cut: Callback, resume: bool = False) -> Any:
        module = distiller(lambda s: EMA(s, 0.9))
        settings = {"checkpoint_seconds": 0.0, "log_every": 1, **options}
        return module, fit(
            module, loader(drop_last=True), epochs=2, out=out / folder, callbacks=cut, resume=resume, seed=5, **settings
        )

    whole, history = train("whole")
    with suppress(Cut):
        train("cut", Die(3))
    again, second = train("cut", resume=True)
    return {"whole": states(whole), "again": states(again), "lines": [history.lines, second.lines]}


class PressOnSecond(Callback):
    """Ctrl-C reaches one process only."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.steps_done == 2 and trainer.global_rank == 1:
            signal.raise_signal(signal.SIGINT)


def interrupted(out: Path, options: dict[str, Any]) -> str:
    try:
        fit(
            distiller(objective=CrossEntropy()),
            loader(drop_last=True),
            epochs=2,
            out=out / "stop",
            callbacks=[PressOnSecond()],
            **options,
        )
    except Interrupted as error:
        return str(error).replace(str(out), "OUT")
    return "not interrupted"


class Seen(Callback):
    def __init__(self) -> None:
        self.ids: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
        self.ids += batch["id"].tolist()


def shares(options: dict[str, Any]) -> dict[str, list[int]]:
    rows = [{"input": torch.ones(8), "target": 1, "id": index} for index in range(20)]
    found = {}
    for name, train in (("tensor", loader(drop_last=True)), ("torch", DataLoader(rows, batch_size=5, shuffle=True))):  # type: ignore
        seen = Seen()
        fit(distiller(objective=CrossEntropy()), train, epochs=1, callbacks=[seen], **options)
        found[name] = seen.ids
    return found


def program(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    model, phases = Net(0), [Phase(name, CrossEntropy(), data(), epochs=1) for name in ("one", "two")]
    first = run_program(model, phases, out=out / "program", **options)
    again = Net(0)
    second = run_program(again, phases, out=out / "program", resume=True, **options)
    return {"steps": [h.steps for h in (*first.values(), *second.values())],
            "weights": [model.state_dict(), again.state_dict()]}  # fmt: skip


def main(out: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 2}
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        results: dict[str, Any] = {"rows": run_case("rows", devices=2, strategy="ddp")}
    else:
        results = {name: run_case(name, devices=2) for name in CASES}
        results["shares"] = shares(options)
        results["program"] = program(out, options)
        results["resumed"] = resumed(out, options)
        results["interrupted"] = interrupted(out, options)
    torch.save(results, out / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
