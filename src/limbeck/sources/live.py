"""A network that answers while the student trains."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_module, fingerprint_text
from limbeck.errors import LimbeckError, UserError
from limbeck.signals import Batch, Forward, HeadLogits, Signals, SparseLogits, pick, run_network
from limbeck.sources.base import Source
from limbeck.taps import Taps

GRADIENTS = ("none", "through")


class Live(Source):
    """A frozen network, always in eval mode.

    Args:
        model: the network.
        gradient: ``none`` runs it in inference mode and keeps nothing; ``through`` freezes its weights but lets the
            gradient flow from its output to its input (score distillation, borrowed encoders).
        taps: names and paths of inner tensors to give besides the outputs; see :class:`limbeck.taps.Taps`.
        forward: how to run the network on a batch; the default passes ``batch["input"]``.
        stop_early: end the forward pass at the last tap that is needed, where a batch needs taps alone: a teacher of
            which an inner layer is asked costs only the layers before it. The signals are the same. For networks that
            run a tapped module several times in a pass leave it off: the first run would count, not the last.
        check: refuse NaN and infinite answers by name. One reduction per signal; turn it off for a trusted teacher
            on a device where reading the flag back stalls.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        gradient: str = "none",
        taps: Mapping[str, str] | None = None,
        forward: Forward = run_network,
        stop_early: bool = False,
        check: bool = True,
    ) -> None:
        if gradient not in GRADIENTS:
            raise UserError("gradient", gradient, GRADIENTS)
        self.model = model.eval()
        if gradient == "through":
            model.requires_grad_(False)
        self.gradient, self.forward, self.stop_early, self.check = gradient, forward, stop_early, check
        self._parts = list(model.modules())
        self.tap_paths = dict(taps or {})
        self.taps = Taps(model, self.tap_paths)

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        # Somebody may have woken the network, or a part of it, since the last batch.
        if any(part.training for part in self._parts):
            self.model.eval()
        signals: Signals
        if self.gradient == "through":
            signals = self._run(batch, needs)
        else:
            with torch.inference_mode():
                signals = self._run(batch, needs)
            # Autograd may not save inference tensors, so the student's loss gets plain copies of what it needs.
            signals = {name: _plain(value) for name, value in signals.items()}
        if self.check:
            refuse_non_finite(signals, batch)
        return signals

    def _run(self, batch: Batch, needs: Collection[str]) -> dict[str, Tensor]:
        enough = needs if self.stop_early and all(name in self.taps.where for name in needs) else ()
        outputs: dict[str, Tensor] = {}
        with self.taps.capture(until=enough) as tapped:
            outputs = self.forward(self.model, batch)
        signals = {**outputs, **tapped}
        return pick(signals, tuple(needs), "teacher") if needs else signals

    def fingerprint(self) -> str:
        return fingerprint_text(
            fingerprint_module(self.model), describe_forward(self.forward), sorted(self.tap_paths.items())
        )

    def to(self, device: torch.device | str) -> Live:
        self.model.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return [self.model]


def _plain(value: Tensor | SparseLogits | HeadLogits) -> Tensor | SparseLogits | HeadLogits:
    if isinstance(value, (SparseLogits, HeadLogits)):
        return value.map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
    return value.clone() if value.is_inference() else value


def describe_forward(forward: Forward) -> list[object]:
    """What tells one way of running a network from another, for fingerprints: its name and what is bound to it."""
    if isinstance(forward, functools.partial):
        bound = {str(place): value for place, value in enumerate(forward.args)} | dict(forward.keywords)
        plain = (str, int, float, bool, type(None))
        known = {key: value if isinstance(value, plain) else type(value).__qualname__ for key, value in bound.items()}
        return [*describe_forward(forward.func), known]
    named = forward if hasattr(forward, "__qualname__") else type(forward)
    return [f"{named.__module__}.{named.__qualname__}"]


def refuse_non_finite(signals: Signals, batch: Batch) -> None:
    """Stop at a teacher that answers NaN or infinity, naming the signal and the samples.

    ``-inf`` logits are allowed: they are how padded vocabularies and masked classes are written. What the batch's
    ``mask`` leaves out may be anything.
    """
    for name, value in signals.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        # One pass decides the usual case: a sum is finite only if every element is.
        if torch.isfinite(value.detach().sum()):
            continue
        bad = torch.isnan(value) | (value == torch.inf) if name == "logits" else ~torch.isfinite(value)
        mask = batch.get("mask")
        if isinstance(mask, Tensor) and value.shape[: mask.dim()] == mask.shape:
            bad = bad & mask.to(bad.device).reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
        if bad.any():
            raise LimbeckError(
                f"teacher signal {name}: NaN or infinite for {_which(bad, batch)}; "
                "check the teacher's precision and its preprocessing"
            )


def _which(bad: Tensor, batch: Batch) -> str:
    rows = (bad.flatten(1).any(1) if bad.dim() > 1 else bad.reshape(-1)).cpu()
    ids = batch.get("id")
    if isinstance(ids, Tensor) and len(ids) == len(rows):
        return f"{int(rows.sum())} of {len(rows)} samples, first ids {ids.cpu()[rows][:5].tolist()}"
    return f"{int(rows.sum())} of {len(rows)} rows, first rows {rows.nonzero().flatten()[:5].tolist()}"
