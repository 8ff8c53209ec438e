"""The experiment that online-distillation systems share: networks that learn together, from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split, Splits
from limbeck.engine import Distiller, OptimizerSettings, PeerDistiller, fit
from limbeck.engine.fit import History
from limbeck.engine.peers import UPDATES
from limbeck.errors import UserError
from limbeck.experiment.base import Outcome
from limbeck.experiment.logits import LogitExperiment, drawn_reliability, make_objective
from limbeck.measure import classification, ece_interval, fit_temperature, logits_of
from limbeck.measure.fidelity import agreement, kl
from limbeck.objectives import Objective
from limbeck.sources import Table

PEERS = ("student", "teacher")
_KEPT = ("accuracy", "nll", "ece", "brier")


class PeerExperiment(LogitExperiment):
    """Train the testbed's student and a fresh network of its teacher's kind on the same batches.

    The setting of an arm maps ``student`` and ``teacher`` to functions that make an objective (``None`` for
    cross-entropy alone). Both networks have the same recipe, an optimiser each, and a seed decides their initial
    weights, the images and the order. Arm options are ``epochs``, ``batch_size``, ``optimizer`` and

    * ``update``: ``simultaneous`` or ``alternating``, see :class:`~limbeck.engine.PeerDistiller`;
    * ``offline``: the teacher learns alone first, and then teaches frozen: plain distillation with the same
      networks, images and steps;
    * ``rescaled``: divide the student's logits by the temperature fitted on ``held_out`` validation images
      (Guo et al., 2017): what calibration costs without any teacher.

    The last epoch counts: nothing is selected. Metrics on the test split: of the student those of the testbed,
    ``overconfidence`` (mean confidence minus accuracy), what temperature scaling would make of it
    (``fitted_temperature``, ``ece_rescaled``, ``nll_rescaled``), ``agreement`` and ``kl`` with its own teacher; of
    the teacher ``teacher_accuracy`` and so on. Curves: accuracy on ``held_out`` validation images after every
    epoch, and the epoch's mean of whatever the student's objective observed and ``traces`` names.
    """

    options = ("epochs", "batch_size", "optimizer", "update", "offline", "rescaled")
    traces: tuple[str, ...] = ()
    held_out = 500

    def check(self) -> None:
        super().check()
        for name, arm in self.arms.items():
            if not isinstance(arm.setting, Mapping) or set(arm.setting) != set(PEERS):
                raise UserError(f"setting of arm {name}", arm.setting, f"an objective for each of {', '.join(PEERS)}")
            if (update := arm.options.get("update", "simultaneous")) not in UPDATES:
                raise UserError(f"update of arm {name}", update, UPDATES)

    def prepare(self) -> dict[str, Any]:
        prepared = super().prepare()
        return prepared | {"reference": {"teacher alone": prepared["reference"]["teacher"]}}

    def run(self, arm: str, seed: int) -> Outcome:
        splits = self.splits(seed)
        networks, curves = self.train_peers(arm, seed, splits)
        held_out = splits.validation.subset(range(min(self.held_out, len(splits.validation))))
        if self.arms[arm].options.get("rescaled", False):
            student = networks["student"]
            networks["student"] = Rescaled(student, fit_temperature(logits_of(student, held_out), held_out.labels))
        metrics, notes = self.assess_peers(networks, splits.test, held_out)
        return Outcome(metrics, curves, notes=notes)

    def networks(self, seed: int) -> dict[str, nn.Module]:
        """Fresh networks by name."""
        return {"student": self.bed.student(seed), "teacher": self._untrained_teacher(seed)}

    def train_peers(self, arm: str, seed: int, splits: Splits) -> tuple[dict[str, nn.Module], dict[str, list[float]]]:
        """The trained networks of an arm in eval mode, and its curves."""
        chosen, networks = self.arms[arm], self.networks(seed)
        objectives = {name: make_objective(setting) for name, setting in chosen.setting.items()}
        epochs, batch_size, optimizer = self.recipe(chosen.options)

        def trained(distiller: PeerDistiller | Distiller) -> History:
            loader = TensorLoader(splits.train, min(batch_size, len(splits.train)), seed=seed)
            validate = self.peer_validator(networks, splits.validation)
            return fit(
                distiller,
                loader,
                epochs=epochs,
                seed=seed,
                validate=validate,
                log_every=1,
                # A student that diverges is an outcome too.
                stop_when_diverged=False,
                accelerator="cpu",
            )

        if chosen.options.get("offline", False):
            history = self._offline(networks, objectives, optimizer, splits.train, trained)
        else:
            update = chosen.options.get("update", "simultaneous")
            history = trained(PeerDistiller(networks, objectives, optimizers=optimizer, update=update))
        names = [name for name in history.names() if name.startswith("validation") or name in self.traces]
        curves = {name.removeprefix("student/").replace("/", "_"): history.by_epoch(name) for name in names}
        return {name: network.eval() for name, network in networks.items()}, curves

    def _offline(
        self,
        networks: Mapping[str, nn.Module],
        objectives: Mapping[str, Objective],
        optimizer: OptimizerSettings,
        train: Split,
        trained: Callable[[Distiller], History],
    ) -> History:
        teacher = networks["teacher"]
        trained(Distiller(teacher, objectives["teacher"], optimizer=optimizer))
        table = Table(train.id, {"logits": logits_of(teacher.eval(), train)})
        return trained(Distiller(networks["student"], objectives["student"], table, optimizer=optimizer))

    def peer_validator(
        self, networks: Mapping[str, nn.Module], split: Split
    ) -> Callable[[nn.Module], dict[str, float]]:
        """Accuracy of both networks on a few validation samples after every epoch, for the learning curves."""
        few = split.subset(range(min(self.held_out, len(split))))

        def validate(distiller: nn.Module) -> dict[str, float]:
            correct = {name: logits_of(model, few).argmax(dim=-1) == few.labels for name, model in networks.items()}
            return {f"{name}_accuracy": float(right.double().mean()) for name, right in correct.items()}

        return validate

    def assess_peers(
        self, networks: Mapping[str, nn.Module], split: Split, held_out: Split
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics and notes of the trained networks on ``split``; ``held_out`` only fits a temperature."""
        ours, theirs = (logits_of(networks[name], split) for name in PEERS)
        if not bool(torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
            return dict.fromkeys((*_KEPT, *(f"teacher_{name}" for name in _KEPT)), float("nan")), {}
        target = split.labels
        student, teacher = classification(ours, target), classification(theirs, target)
        temperature = fit_temperature(logits_of(networks["student"], held_out), held_out.labels)
        rescaled = classification(ours / temperature, target)
        confidence = float(ours.softmax(dim=-1).max(dim=-1).values.double().mean())
        metrics = {name: student[name] for name in _KEPT} | {
            "overconfidence": confidence - student["accuracy"],
            "fitted_temperature": temperature,
            "ece_rescaled": rescaled["ece"],
            "nll_rescaled": rescaled["nll"],
            "agreement": agreement(theirs, ours),
            "kl": kl(theirs, ours),
        }
        metrics |= {f"teacher_{name}": teacher[name] for name in _KEPT}
        interval = [round(bound, 5) for bound in ece_interval(ours, target, resamples=200)]
        return metrics, {"reliability": drawn_reliability(ours, target), "ece_interval": interval}


class Rescaled(nn.Module):
    """A network whose logits are divided by a temperature: the arg-max stays, the confidence changes."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, values: Tensor) -> Tensor:
        """Logits ``[B, classes]``."""
        logits: Tensor = self.network(values)
        return logits / self.temperature
