"""Our training step against a hand-written PyTorch loop that does the same distillation.

    python benchmarks/training_step.py [--quick]

Three tasks: an image classifier (ResNet on 32 x 32 colour images, CE + KL), a text classifier (transformer, CE + KL)
and feature regression (convolutions, MSE to a wider teacher's map through a 1x1 projector). Both sides run the same
networks, data order, optimiser and learning rates; the hand-written loop is what a careful person writes without a
framework: teacher under inference mode, fused AdamW, no logging. The inputs are noise, since no step takes longer or
shorter for what a picture shows. Time is that of steps, without set-up; memory is the peak of a whole process, in the
median of five processes.
Targets: at most 1.03 in time, 1.05 in peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from pairs import check, conclude, measure_pair
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.measure import peak_memory
from limbeck.models.small import ResNetCIFAR, TinyTransformer
from limbeck.objectives import KL, CrossEntropy, FeatureMSE, Objective
from limbeck.signals import run_network
from limbeck.sources import Live

STEPS, SKIPPED, CLASSES = 14, 4, 10
SETTINGS = OptimizerSettings(lr=1e-3, schedule="constant")


class Task:
    """Networks and data of one comparison, made anew for each side."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name, self.features = name, name == "features"
        count, batch = 64 * STEPS, 64
        if name == "text":
            self.student: nn.Module = TinyTransformer(8000, 128, 2, 4, CLASSES, 64)
            self.teacher: nn.Module = TinyTransformer(8000, 256, 4, 4, CLASSES, 64)
            ids = torch.randint(1, 8000, (count, 64))
            self.inputs: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        else:
            self.student, self.teacher = ResNetCIFAR(8, 16, CLASSES, 3), ResNetCIFAR(20, 32, CLASSES, 3)
            self.inputs = torch.randn(count, 3, 32, 32)
        self.target = torch.randint(0, CLASSES, (count,))
        self.batch = batch

    def loader(self) -> TensorLoader:
        return TensorLoader({"input": self.inputs, "target": self.target}, self.batch, seed=0)


class Clock(Callback):
    """When every step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def ours(name: str) -> float:
    """Seconds of the steps that count, through Distiller and fit."""
    task, clock = Task(name), Clock()
    if task.features:
        taps = {"map": "stage3"}
        objective: Objective = FeatureMSE(student="map", teacher="map")
        distiller = Distiller(task.student, objective, Live(task.teacher, taps=taps), optimizer=SETTINGS, taps=taps)
    else:
        objective = 0.1 * CrossEntropy() + 0.9 * KL(temperature=4)
        distiller = Distiller(task.student, objective, Live(task.teacher), optimizer=SETTINGS)
    fit(distiller, task.loader(), epochs=1, callbacks=[clock], accelerator="cpu")
    return clock.times[-1] - clock.times[SKIPPED - 1]


def by_hand(name: str) -> float:
    """The same in a plain loop."""
    task = Task(name)
    student, teacher = task.student.train(), task.teacher.eval()
    loader = task.loader()
    maps: dict[str, Tensor] = {}
    parts = [student]
    if task.features:
        for side, network in (("student", student), ("teacher", teacher)):
            network.get_submodule("stage3").register_forward_hook(
                lambda module, given, output, side=side: maps.__setitem__(side, output)
            )
        with torch.no_grad():  # Else the graph of this look at the shapes would live until the first step.
            run_network(student.eval(), loader.peek())
            run_network(teacher, loader.peek())
        student.train()
        projector = nn.Conv2d(maps["student"].shape[1], maps["teacher"].shape[1], 1)
        parts.append(projector)
    weights = [parameter for part in parts for parameter in part.parameters()]
    groups = [
        {"params": [p for p in weights if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    times = []
    for batch in loader:
        with torch.inference_mode():
            theirs = run_network(teacher, batch)["logits"]
        logits = run_network(student, batch)["logits"]
        if task.features:
            loss = functional.mse_loss(projector(maps["student"]), maps["teacher"].clone())
        else:
            soft = functional.kl_div(
                (logits / 4).log_softmax(-1), (theirs.clone() / 4).softmax(-1), reduction="batchmean"
            )
            loss = 0.1 * functional.cross_entropy(logits, batch["target"]) + 0.9 * 16 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter())
    return times[-1] - times[SKIPPED - 1]


def timed(run: Callable[[str], float], name: str) -> Callable[[], float]:
    return lambda: run(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few repeats, to try the script; writes no result")
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(2)
    result, checks = {}, []
    for name in ("image", "text", "features"):
        pair = measure_pair(timed(ours, name), timed(by_hand, name), repeats=2 if quick else 11, warmup=1)
        # The allocator's choices move a process's peak by a tenth from run to run, on both sides.
        memory = {
            side.__name__: [peak_memory(side, name, warmup=side).peak for _ in range(1 if quick else 5)]
            for side in (ours, by_hand)
        }
        ratio = statistics.median(memory["ours"]) / statistics.median(memory["by_hand"])
        print(f"{name}: time {pair}; peak memory {ratio:.3f}", flush=True)
        result[name] = {"time": pair.to_dict(), "peak_memory_bytes": memory, "memory_ratio": ratio}
        checks += [
            check(f"{name}: our step over a hand-written one, time", pair.ratio, at_most=1.03),
            check(f"{name}: peak memory", ratio, at_most=1.05),
        ]
    conclude("training_step", result, checks, quick=quick)


if __name__ == "__main__":
    main()
