"""Several networks that learn together, each from the labels and from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from limbeck.engine.checkpoints import ExactResume
from limbeck.engine.optimizer import OptimizerSettings, log_every, training_steps
from limbeck.errors import LimbeckError, UserError
from limbeck.nn.mode import evaluating
from limbeck.objectives.base import Objective, total
from limbeck.signals import Batch, Forward, Signals, detach, move, run_network

UPDATES = ("simultaneous", "alternating")


class PeerDistiller(LightningModule):
    """Online (mutual) distillation: every peer has its own objective, optimiser and schedule.

    Each peer's objective sees the other's signals, detached, as its teacher; with more than two peers the terms are
    averaged over the others. All peers train in training mode (their BatchNorm and dropout too).

    Args:
        peers: name -> network.
        objectives: name -> objective, one per peer.
        optimizers: settings for all, or name -> settings.
        update: ``simultaneous`` computes every loss before any step; ``alternating`` lets each peer see the others
            as they are after their step.
        forward: how to run a peer on a batch.
        gradient_clip: largest norm of a peer's gradient; :func:`~limbeck.engine.fit` sets it too.

    A step, for the Trainer too (``max_steps``, ``global_step``), is one batch, and moves every peer.
    """

    def __init__(
        self,
        peers: Mapping[str, nn.Module],
        objectives: Mapping[str, Objective],
        *,
        optimizers: OptimizerSettings | Mapping[str, OptimizerSettings] | None = None,
        update: str = "simultaneous",
        forward: Forward = run_network,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__()
        if len(peers) < 2:
            raise UserError("peers", list(peers), "two or more networks")
        if set(objectives) != set(peers):
            raise UserError("objectives", sorted(objectives), sorted(peers))
        if update not in UPDATES:
            raise UserError("update", update, UPDATES)
        self.automatic_optimization = False
        self.peers, self.objectives = nn.ModuleDict(peers), nn.ModuleDict(objectives)
        settings = optimizers or OptimizerSettings()
        self.settings = settings if isinstance(settings, Mapping) else dict.fromkeys(peers, settings)
        if set(self.settings) != set(peers):
            raise UserError("optimizers", sorted(self.settings), sorted(peers))
        self.update, self.run_peer, self.gradient_clip = update, forward, gradient_clip
        self.steps_done = 0
        self.latest_terms: dict[str, Tensor] = {}
        # A pretrained network arrives in eval mode, and a Trainer leaves the mode as it is.
        self.train()

    def build(self, batch: Batch) -> PeerDistiller:
        """One dry forward: checks that peers and objectives fit, and inserts projectors."""
        with evaluating(self), torch.no_grad():
            signals = self.signals(batch)
            for name in self.peers:
                objective: Any = self.objectives[name]
                for other in self.peers:
                    if other != name:
                        objective.build(signals[name], signals[other])
                self.terms_of(name, signals, batch)
        return self

    def signals(self, batch: Batch) -> dict[str, Signals]:
        """Every peer's signals of one batch."""
        return {name: self.run_peer(peer, batch) for name, peer in self.peers.items()}

    def terms_of(self, name: str, signals: Mapping[str, Signals], batch: Batch) -> dict[str, Tensor]:
        """One peer's terms: the mean over the others, whose signals are constants for its gradient."""
        return self._compare(name, signals, batch)[0]

    def _compare(
        self, name: str, signals: Mapping[str, Signals], batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One peer's terms and what its objective observed, both as means over the others."""
        others = [detach(signals[other]) for other in self.peers if other != name]
        objective: Any = self.objectives[name]
        terms: dict[str, Tensor] = {}
        observed: dict[str, Tensor] = {}
        for other in others:
            for sums, values in ((terms, objective(signals[name], other, batch)), (observed, objective.observed())):
                for key, value in values.items():
                    sums[key] = sums.get(key, value.new_zeros(())) + value / len(others)
        return terms, observed

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        progress = self.steps_done / self.trainer.estimated_stepping_batches
        for objective in self.objectives.values():
            objective.set_progress(progress)  # type: ignore[operator]
        optimizers = dict(zip(self.peers, self._optimizers_of_one_step(), strict=True))
        signals = self.signals(batch)
        latest: dict[str, Tensor] = {}
        losses = {}
        for name in self.peers:
            terms, observed = self._compare(name, signals, batch)
            losses[name] = total(terms)
            logged = {**terms, "loss": losses[name], **observed}
            latest |= {f"{name}/{key}": value.detach() for key, value in logged.items()}
            if self.update == "alternating":
                self._step(optimizers[name], losses[name])
                signals = self._refresh(name, signals, batch)
        if self.update == "simultaneous":
            for name, loss in losses.items():
                self._step(optimizers[name], loss)
        schedules: Any = self.lr_schedulers()
        for schedule in schedules:
            schedule.step()
        self.steps_done += 1
        self.latest_terms = {**latest, "loss": torch.stack([loss.detach() for loss in losses.values()]).sum()}
        if self.trainer.loggers and self.steps_done % log_every(self.trainer) == 0:
            self.log_dict(self.latest_terms, sync_dist=True)

    def _optimizers_of_one_step(self) -> list[Any]:
        # Lightning counts every call of step(); a batch is one step here, so only the first of them may count.
        optimizers: Any = self.optimizers()
        for optimizer in optimizers[1:]:
            optimizer._on_before_step = optimizer._on_after_step = lambda: None
        return list(optimizers)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.gradient_clip:
            self.clip_gradients(optimizer, self.gradient_clip)
        optimizer.step()

    def _refresh(self, name: str, signals: Mapping[str, Signals], batch: Batch) -> dict[str, Signals]:
        with torch.no_grad():
            after = self.run_peer(self.peers[name], batch)
        return {**signals, name: after}

    def configure_optimizers(self) -> Any:
        steps = training_steps(self.trainer)
        built = [self.settings[name].build(self._weights(name), steps) for name in self.peers]
        return [optimizer for optimizer, _ in built], [schedule for _, schedule in built]

    def _weights(self, name: str) -> list[tuple[str, nn.Parameter]]:
        parts = {"student": self.peers[name], "objective": self.objectives[name]}
        return [named for prefix, part in parts.items() for named in part.named_parameters(prefix)]

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.steps_done = 0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return move(batch, device)

    def configure_callbacks(self) -> list[Callback]:
        return [ExactResume()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["limbeck"] = {"steps_done": self.steps_done}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "limbeck" not in checkpoint:
            raise LimbeckError("this checkpoint was not written by a PeerDistiller: its step is missing")
        self.steps_done = checkpoint["limbeck"]["steps_done"]

    def finish(self, name: str) -> nn.Module:
        """One peer alone, in eval mode."""
        if name not in self.peers:
            raise UserError("peer", name, self.peers)
        return self.peers[name].eval()
