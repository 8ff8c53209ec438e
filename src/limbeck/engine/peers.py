"""Several networks that learn together, each from the labels and from the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.optimizer import OptimizerSettings
from limbeck.engine.players import Players, Turn
from limbeck.errors import UserError
from limbeck.nn.mode import evaluating
from limbeck.objectives.base import Objective
from limbeck.signals import Batch, Forward, Signals, detach, run_network

UPDATES = ("simultaneous", "alternating")


class PeerDistiller(Players):
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
        if len(peers) < 2:
            raise UserError("peers", list(peers), "two or more networks")
        if set(objectives) != set(peers):
            raise UserError("objectives", sorted(objectives), sorted(peers))
        if update not in UPDATES:
            raise UserError("update", update, UPDATES)
        given = optimizers or OptimizerSettings()
        settings = given if isinstance(given, Mapping) else dict.fromkeys(peers, given)
        if set(settings) != set(peers):
            raise UserError("optimizers", sorted(settings), sorted(peers))
        super().__init__({name: settings[name] for name in peers}, gradient_clip=gradient_clip)
        self.peers, self.objectives = nn.ModuleDict(peers), nn.ModuleDict(objectives)
        self.update, self.run_peer = update, forward
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

    def turns(self, batch: Batch) -> Iterator[Turn]:
        """Every peer's, in their order."""
        for objective in self.objectives.values():
            objective.set_progress(self.progress)  # type: ignore[operator]
        signals = self.signals(batch)
        waiting = []
        for name in self.peers:
            turn = Turn(name, *self._compare(name, signals, batch))
            if self.update == "alternating":
                yield turn
                signals = self._refresh(name, signals, batch)
            else:
                waiting.append(turn)
        yield from waiting

    def _refresh(self, name: str, signals: Mapping[str, Signals], batch: Batch) -> dict[str, Signals]:
        with torch.no_grad():
            after = self.run_peer(self.peers[name], batch)
        return {**signals, name: after}

    def weights_of(self, player: str) -> list[tuple[str, nn.Parameter]]:
        """A peer's, and those of its objective, by the names that a distiller would give them."""
        parts = {"student": self.peers[player], "objective": self.objectives[player]}
        return [named for prefix, part in parts.items() for named in part.named_parameters(prefix)]

    def finish(self, name: str) -> nn.Module:
        """One peer alone, in eval mode."""
        if name not in self.peers:
            raise UserError("peer", name, self.peers)
        return self.peers[name].eval()
