"""Our training step against torchdistill's own training loop doing the same distillation.

    python benchmarks/torchdistill_loop.py [--quick]

torchdistill comes from PyPI into ``build/torchdistill-venv``, which this script makes and which borrows torch and
everything else from the venv that runs it. Both sides then run in that venv, in turn and in one process.

torchdistill imports torchvision, which has no build for this CPU torch: of its packages only ``common``, ``losses``,
``optim`` and ``misc`` import without, ``core``, ``models`` and ``datasets`` do not. What stops them is a handful of
names (the list of data sets, building blocks of three networks for CIFAR), none of which a step uses. So inert
stand-ins are lent to its import, and its ``DistillationBox`` runs as it is, driven by ``train_one_epoch`` of its
``examples/torchvision/image_classification.py``, with its metric logger, its data loader and its ``KDLoss``.

Alike on both sides: networks and first weights, batches and their order, CE and KL with their weights and temperature,
AdamW with torch's fused kernel, teacher in eval mode, no worker processes, threads. Before anything is measured, the
losses of the two sides are compared step by step. Not alike, as each library has it:

- loading: torchdistill builds a torch ``DataLoader``, which fetches one sample at a time and collates; ours indexes
- teacher: ``torch.no_grad()`` there, inference mode and a check for NaN here
- log: a loss read back at every step and a check for NaN there; every tenth step here, and a learning-rate schedule

Targets: torchdistill takes at least 1.2 times as long. Beside them, without a target: ``same_loader`` gives
torchdistill our loader, so that only the loops differ; ``example_as_it_is`` leaves it what its example and sample
configuration would do, where AdamW is not fused and the teacher stays in training mode, so that its BatchNorm moves.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from pairs import check, conclude, measure_pair
from torch import Tensor, nn
from torch.utils.data import Sampler, TensorDataset
from venvs import compare_beside

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.models.small import ResNetCIFAR, small_cnn
from limbeck.objectives import KL, CrossEntropy
from limbeck.sources import Live

TORCHDISTILL = "1.1.5"
SKIPPED, CLASSES, TEMPERATURE, HARD = 4, 10, 4.0, 0.1
# The names of torchvision that torchdistill mentions while it is imported.
NAMES = {
    "torchvision.datasets": (),
    "torchvision.models": (),
    "torchvision.models.densenet": ("_DenseBlock", "_Transition"),
    "torchvision.models.resnet": ("BasicBlock", "conv1x1"),
}


@dataclass(frozen=True)
class Setting:
    """One comparison: networks, size of the images, batches."""

    student: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch: int
    steps: int
    threads: int


SETTINGS = {
    "image": Setting(
        lambda: ResNetCIFAR(8, 16, CLASSES, 3), lambda: ResNetCIFAR(20, 32, CLASSES, 3), (3, 32, 32), 64, 14, 2
    ),
    "small": Setting(lambda: small_cnn("16k"), lambda: small_cnn("300k"), (1, 28, 28), 128, 44, 1),
}


class Task:
    """Networks and data, made anew for each side. The inputs are noise: no step takes longer for a picture."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        setting = self.setting = SETTINGS[name]
        self.student, self.teacher = setting.student(), setting.teacher()
        count = setting.batch * setting.steps
        self.inputs, self.target = torch.randn(count, *setting.shape), torch.randint(0, CLASSES, (count,))

    def loader(self) -> TensorLoader:
        return TensorLoader({"input": self.inputs, "target": self.target}, self.setting.batch, seed=0)


class Clock(Callback):
    """When every step ended, and its loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self.note(pl_module.latest_terms["loss"])

    def note(self, loss: Tensor) -> None:
        self.losses.append(loss)
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of the steps that count."""
        return self.times[-1] - self.times[SKIPPED - 1]


def ours(name: str) -> Clock:
    """Through Distiller and fit."""
    task, clock = Task(name), Clock()
    objective = HARD * CrossEntropy() + (1 - HARD) * KL(temperature=TEMPERATURE)
    settings = OptimizerSettings(lr=1e-3, weight_decay=0.0, schedule="constant")
    distiller = Distiller(task.student, objective, Live(task.teacher), optimizer=settings)
    fit(distiller, task.loader(), epochs=1, callbacks=[clock], accelerator="cpu")
    return clock


def theirs(name: str, *, same_loader: bool = False, fused: bool = True, teacher_mode: str = "eval") -> Clock:
    """The same with a DistillationBox, driven as torchdistill's example drives it."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    task = Task(name)
    task.teacher.train(teacher_mode == "train")
    device = torch.device("cpu")
    data = {"train": TensorDataset(task.inputs, task.target)}
    optimizer = {"lr": 1e-3, "weight_decay": 0.0, **({"fused": True} if fused else {})}
    config = training(task, optimizer)
    box = get_distillation_box(
        task.teacher, task.student, data, config, device, device_ids=None, distributed=False, lr_factor=1
    )
    if same_loader:
        box.train_data_loader = Triples(task.loader())
    clock = Clock()
    box.pre_epoch_process(epoch=0)
    # From here on it is train_one_epoch of the example, with a clock.
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for sample_batch, targets, supplement in logger.log_every(box.train_data_loader, 100, "Epoch: [0]"):
        start = time.time()
        sample_batch, targets = sample_batch.to(device), targets.to(device)
        loss = box.forward_process(sample_batch, targets, supplement)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(sample_batch.shape[0] / (time.time() - start))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"the training loop was broken due to loss = {loss}")
        clock.note(loss.detach())
    box.post_epoch_process()
    box.clean_modules()
    return clock


def training(task: Task, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The ``train`` part of torchdistill's sample configuration for KD on CIFAR-10, for this task."""
    # "." is the network itself: its logits, without a hook.
    output = {"student_module_path": ".", "student_module_io": "output"}
    output |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {**output, "temperature": TEMPERATURE, "alpha": HARD, "reduction": "batchmean"}
    order = torch.cat(task.loader().order(0)).tolist()
    return {
        "log_freq": 100,
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": Order, "kwargs": {"order": order}},
            "kwargs": {"batch_size": task.setting.batch, "num_workers": 0, "drop_last": False},
        },
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": dict(optimizer)},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
        },
    }


class Order(Sampler[int]):
    """A given order, where the example has a random one."""

    def __init__(self, data: Any, order: list[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class Triples:
    """Our loader with the batches that torchdistill expects."""

    def __init__(self, loader: TensorLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        return ((batch["input"], batch["target"], {}) for batch in self.loader)

    def __len__(self) -> int:
        return len(self.loader)


@contextmanager
def without_torchvision() -> Iterator[list[str]]:
    """Lend inert names to torchdistill's import; gives those that were lent."""
    if importlib.util.find_spec("torchvision") is not None:
        yield []
        return
    lent = {name: ModuleType(name) for name in ("torchvision", *NAMES)}
    for name, module in lent.items():
        module.__path__ = []
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(lent[parent], leaf, module)
        for inert in NAMES.get(name, ()):
            setattr(module, inert, type(inert, (nn.Module,), {}))
    sys.modules.update(lent)
    try:
        yield list(lent)
    finally:
        for name in lent:
            del sys.modules[name]


def seconds(side: Callable[..., Clock], name: str, **options: Any) -> float:
    return side(name, **options).seconds


def largest_difference(a: Clock, b: Clock) -> float:
    """Between the losses of the same steps, as a share."""
    one, other = torch.stack(a.losses), torch.stack(b.losses)
    return float(((one - other).abs() / other.abs()).max())


def compare(quick: bool) -> None:
    """Measure, inside the venv that has torchdistill."""
    with without_torchvision() as lent:
        import torchdistill.core.distillation  # noqa: F401
    result: dict[str, Any] = {
        "torchdistill": metadata.version("torchdistill"),
        "stand_ins": lent,
        "comparability": [" ".join(paragraph.split()) for paragraph in (__doc__ or "").split("\n\n")[3:]],
    }
    checks = []
    variants: dict[str, dict[str, Any]] = {
        "its_loop": {},
        "same_loader": {"same_loader": True},
        "example_as_it_is": {"fused": False, "teacher_mode": "train"},
    }
    for name, setting in SETTINGS.items():
        torch.set_num_threads(setting.threads)
        difference = largest_difference(ours(name), theirs(name))
        print(f"{name}: losses of {setting.steps} steps differ by {difference:.1e} at most", flush=True)
        if difference > 1e-2:
            sys.exit(f"{name}: the two sides do not do the same distillation")
        result[name] = {"largest_difference_of_a_loss": difference, "threads": setting.threads}
        for variant, options in variants.items():
            repeats = 2 if quick else 11 if not options else 5
            pair = measure_pair(
                partial(seconds, theirs, name, **options), partial(seconds, ours, name), repeats, warmup=1
            )
            result[name][variant] = pair.to_dict()
            print(f"{name}, {variant}: theirs / ours {pair}", flush=True)
            if not options:
                text = f"{name}: a step of torchdistill's own loop over ours, time"
                checks.append(check(text, pair.ratio, at_least=1.2))
    conclude("torchdistill_loop", result, checks, quick=quick)


if __name__ == "__main__":
    compare_beside(compare, __doc__, __file__, "torchdistill", TORCHDISTILL)
