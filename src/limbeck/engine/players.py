"""Networks that take turns within one training step: min-max games, fake scores, peers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from limbeck.engine.checkpoints import ExactResume
from limbeck.engine.optimizer import OptimizerSettings, log_every, training_steps
from limbeck.errors import LimbeckError, UserError
from limbeck.objectives.base import total
from limbeck.signals import Batch, move
from limbeck.sources.base import Source


@dataclass(frozen=True)
class Turn:
    """What one player minimises now: the sum of ``terms``. ``observed`` is only logged."""

    player: str
    terms: Mapping[str, Tensor]
    observed: Mapping[str, Tensor] = field(default_factory=dict)


class Players(LightningModule):
    """Several players with an optimiser each; what they do in a step is written down in order, as in a paper.

    A subclass says in :meth:`turns` what is minimised by whom. Each yielded :class:`Turn` is a backward pass and a
    step of that player's optimiser, taken before the next line of ``turns`` runs:

        def turns(self, batch):
            sample = self.generator(batch["input"])
            yield Turn("generator", {"fool": self.judge(sample).mean()})
            yield Turn("critic", {"judge": -self.judge(sample.detach()).mean()})

    A player may have several turns, or none, in a step.

    Args:
        settings: name -> optimiser and schedule; these are the players.
        gradient_clip: largest norm of a player's gradient; :func:`~limbeck.engine.fit` sets it too.

    ``sources`` are frozen teachers and averages by name: moved to the device, in the checkpoint as a fingerprint and
    what changes of them, and told of every step if ``followed`` names the network that they follow.

    A step, for the Trainer too (``max_steps``, ``global_step``), is one batch, whatever its turns.
    """

    def __init__(self, settings: Mapping[str, OptimizerSettings], *, gradient_clip: float | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.gradient_clip = dict(settings), gradient_clip
        self.sources: dict[str, Source] = {}
        self.followed: dict[str, nn.Module] = {}
        self.steps_done = 0
        self.latest_terms: dict[str, Tensor] = {}

    @abstractmethod
    def turns(self, batch: Batch) -> Iterator[Turn]:
        """One training step."""

    @abstractmethod
    def weights_of(self, player: str) -> Sequence[nn.Parameter | tuple[str, nn.Parameter]]:
        """What a player's optimiser moves, with names or without."""

    def build(self, batch: Batch) -> Players:
        """Called by :func:`~limbeck.engine.fit` with a first batch, before training: for checks and projectors."""
        return self

    def gradients_ready(self, player: str) -> None:
        """Called between a player's backward pass and its step."""

    @property
    def progress(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        return float(self.steps_done / self.trainer.estimated_stepping_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        built: Any = self.optimizers(use_pl_optimizer=True)
        optimizers = dict(zip(self.settings, built if isinstance(built, list) else [built], strict=True))
        latest: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for turn in self.turns(batch):
            if turn.player not in optimizers:
                raise UserError("turn", turn.player, optimizers)
            loss = total(turn.terms)
            self._step(turn.player, optimizers[turn.player], loss)
            if not losses:
                _count_no_more(optimizers.values())
            losses.append(loss.detach())
            logged = {**turn.terms, "loss": loss, **turn.observed}
            latest |= {f"{turn.player}/{key}": value.detach() for key, value in logged.items()}
        if not losses:
            raise UserError("turns", "none", "at least one in every step")
        schedules: Any = self.lr_schedulers()
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()
        self.steps_done += 1
        for name, network in self.followed.items():
            self.sources[name].after_step(network, self.steps_done)
        self.latest_terms = {**latest, "loss": torch.stack(losses).sum()}
        if self.trainer.loggers and self.steps_done % log_every(self.trainer) == 0:
            self.log_dict(self.latest_terms, sync_dist=True)

    def _step(self, player: str, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.gradients_ready(player)
        if self.gradient_clip:
            self.clip_gradients(optimizer, self.gradient_clip)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        steps = training_steps(self.trainer)
        built = [settings.build(self.weights_of(name), steps) for name, settings in self.settings.items()]
        return [optimizer for optimizer, _ in built], [schedule for _, schedule in built]

    # State and devices.

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.steps_done = 0
        for source in self.sources.values():
            source.to(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return move(batch, device)

    def configure_callbacks(self) -> list[Callback]:
        return [ExactResume()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["limbeck"] = {
            "steps_done": self.steps_done,
            "sources": {
                name: {"fingerprint": self._fingerprint(name), "state": source.state_dict()}
                for name, source in self.sources.items()
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "limbeck" not in checkpoint:
            raise LimbeckError(f"this checkpoint was not written by a {type(self).__name__}: its step is missing")
        state = checkpoint["limbeck"]
        self.steps_done = state["steps_done"]
        for name, source in self.sources.items():
            kept = state.get("sources", {}).get(name)
            if kept is None or kept["fingerprint"] != self._fingerprint(name):
                raise UserError(name, "another than the checkpoint's", "the one that training began with")
            source.load_state_dict(kept["state"])

    def _fingerprint(self, name: str) -> str:
        """Hashed once: what is frozen does not change."""
        known: dict[str, str] = self.__dict__.setdefault("_fingerprints", {})
        if name not in known:
            known[name] = self.sources[name].fingerprint()
        return known[name]


def _count_no_more(optimizers: Any) -> None:
    """Lightning counts every call of ``step``, and a batch is one step here. It counts anew with the next batch."""
    for optimizer in optimizers:
        optimizer._on_before_step = optimizer._on_after_step = lambda: None
