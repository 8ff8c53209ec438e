"""Teachers made from the student itself: its moving average, and its earlier self."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.errors import UserError
from limbeck.nn.gather import share_buffers
from limbeck.nn.transfer import WeightTransfer, shadow_of
from limbeck.schedules import Schedule
from limbeck.signals import Batch, Forward, Signals, run_network
from limbeck.sources.base import Source
from limbeck.sources.live import Live, describe_forward


class _Shadow(Source):
    """A frozen copy of a network that follows it in its own way; its weights are part of the checkpoint."""

    def __init__(self, model: nn.Module, taps: Mapping[str, str] | None, forward: Forward) -> None:
        self.live = Live(shadow_of(model), taps=taps, forward=forward)

    @property
    def model(self) -> nn.Module:
        """The shadow network."""
        return self.live.model

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        return self.live(batch, needs)

    def to(self, device: torch.device | str) -> Source:
        self.live.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return self.live.modules()

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.model.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])

    def _rule(self) -> dict[str, Any]:
        """How it follows the student: what makes one such source another."""
        return {}

    def fingerprint(self) -> str:
        # What it says also depends on the training it follows, which the checkpoint's state stands for.
        rule = {"kind": type(self).__qualname__, "taps": self.live.tap_paths, **self._rule()}
        return fingerprint_text(rule, describe_forward(self.live.forward))


class EMA(_Shadow):
    """An exponential moving average of the student's weights (mean teacher).

    Args:
        student: the network to follow; its copy starts here.
        momentum: share of the old average kept at each update; may be a :class:`~limbeck.schedules.Schedule` over
            ``steps`` steps.
        every: ``step`` updates after each optimiser step, ``epoch`` after each epoch.
        names: maps the average's tensor names to the student's, where the two are built differently.
        buffers: ``copy`` (BatchNorm statistics of the student), ``blend`` or ``keep``.
        steps: length of training in updates, for a momentum schedule.
    """

    def __init__(
        self,
        student: nn.Module,
        momentum: float | Schedule = 0.999,
        *,
        every: str = "step",
        names: Callable[[str], str | None] | Mapping[str, str] | None = None,
        buffers: str = "copy",
        steps: int | None = None,
        taps: Mapping[str, str] | None = None,
        forward: Forward = run_network,
    ) -> None:
        if every not in ("step", "epoch"):
            raise UserError("every", every, ("step", "epoch"))
        if isinstance(momentum, Schedule) and not steps:
            raise UserError("steps", steps, "the number of updates, which a momentum schedule needs")
        if not isinstance(momentum, Schedule) and not 0.0 <= momentum <= 1.0:
            raise UserError("momentum", momentum, "0 to 1")
        super().__init__(student, taps, forward)
        self.momentum, self.every, self.steps, self.buffers = momentum, every, steps or 1, buffers
        self._transfer_of = lambda network: WeightTransfer(
            network, self.model, names=names, momentum=momentum, buffers=buffers
        )
        # Found out now, not at the first step, if the two do not fit.
        self._transfer: tuple[nn.Module, WeightTransfer] | None = (student, self._transfer_of(student))

    def _rule(self) -> dict[str, Any]:
        momentum = self.momentum
        if isinstance(momentum, Schedule):
            momentum = {"schedule": type(momentum).__qualname__, **vars(momentum)}  # type: ignore[assignment]
        return {"momentum": momentum, "every": self.every, "steps": self.steps, "buffers": self.buffers}

    def after_step(self, student: nn.Module, step: int) -> None:
        if self.every == "step":
            self._update(student, step)

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        if self.every == "epoch":
            self._update(student, epoch)

    def _update(self, student: nn.Module, count: int) -> None:
        if self._transfer is None or self._transfer[0] is not student:
            self._transfer = (student, self._transfer_of(student))
        self._transfer[1](count / self.steps)
        share_buffers(self.model)


class Snapshot(_Shadow):
    """An earlier self of the student, taken anew every ``every`` epochs (0: only at the start)."""

    def __init__(
        self,
        student: nn.Module,
        *,
        every: int = 1,
        taps: Mapping[str, str] | None = None,
        forward: Forward = run_network,
    ) -> None:
        if every < 0:
            raise UserError("every", every, "0 (only at the start) or a number of epochs")
        super().__init__(student, taps, forward)
        self.every = every

    def _rule(self) -> dict[str, Any]:
        return {"every": self.every}

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        if self.every and epoch % self.every == 0:
            WeightTransfer(student, self.model)()
            share_buffers(self.model)
