"""Cost: parameters, bytes, FLOPs, latency, throughput and memory of a network.

The first three are exact and the same on every machine. Times are only worth something beside other times of
the same run, so :func:`compare_latency` and :func:`compare_throughput` take all candidates at once and
interleave them.
"""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.nn.mode import evaluating, plain_attention
from limbeck.taps import Taps, first_tensor, modules_by_path

Inputs = Tensor | Mapping[str, Tensor]


def parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of ``parameters`` and of those that are ``trainable``; a shared tensor counts once."""
    found = list(model.parameters())
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in found):
        raise UserError("model", "lazy parameters without a shape", "a network that has run once")
    return {
        "parameters": sum(parameter.numel() for parameter in found),
        "trainable": sum(parameter.numel() for parameter in found if parameter.requires_grad),
    }


def state_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and saved buffers, a shared tensor once: about the weights' file."""
    seen: dict[object, int] = {}
    for value in model.state_dict(keep_vars=True).values():
        if isinstance(value, Tensor):
            size = value.numel() * value.element_size()
            # A tensor on the meta device has no address; there only the object tells shared ones apart.
            address = 0 if value.is_meta else value.data_ptr()
            seen[(address, size, value.device) if address else id(value)] = size
    return sum(seen.values())


def flops(model: nn.Module, inputs: Inputs) -> float:
    """Floating-point operations of one forward pass in evaluation mode, per sample (axis 0 of the inputs).

    A multiplication and an addition are two operations. Counted are matrix products, convolutions and
    attention (``torch.utils.flop_counter``), which is where the time goes; element-wise operations are not.
    Fused kernels that the counter cannot see into (attention on a CPU, recurrent layers) are switched to
    their plain forms.

    Args:
        inputs: a tensor or keyword arguments, as in ``batch["input"]``. Sequences cost what their padded
            length does.
    """
    size = samples(inputs)
    return count_flops(lambda: _forward(model, inputs), model) / size


def count_flops(call: Callable[[], Any], *networks: nn.Module) -> float:
    """Floating-point operations of whatever ``call`` runs, counted as in :func:`flops`; not per sample.

    Args:
        networks: those that the call uses, to run in evaluation mode.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with warnings.catch_warnings(), evaluating(*networks), plain_attention(), torch.no_grad():
        warnings.simplefilter("ignore")
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            FlopCounterMode(display=False) as counter,
        ):
            call()
    return float(counter.get_total_flops())


def token_layers(call: Callable[[], Any], *networks: nn.Module, layers: str = "every_block") -> int:
    """Tokens times blocks that ``call`` runs in transformers: exact, and the share of a whole pass that masking, pruned
    tokens or an early stop leave.

    Args:
        networks: those that are counted. layers: their blocks, a pattern or role of :class:`~limbeck.taps.Taps`.
    """
    counted = 0

    def count(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        nonlocal counted
        counted += first_tensor(args or given).shape[:-1].numel()

    handles = []
    for network in networks:
        modules, taps = modules_by_path(network), Taps(network, {"block": layers})
        # Before the block, since a tap behind it may end the pass.
        handles += [modules[t.path].register_forward_pre_hook(count, with_kwargs=True) for t in taps.where.values()]
        taps.close()
    try:
        with evaluating(*networks), torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return counted


def cost_summary(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """The exact figures together: ``parameters``, ``trainable``, ``bytes``, ``flops`` (per sample)."""
    return {**parameters(model), "bytes": state_bytes(model), "flops": flops(model, inputs)}


def samples(inputs: Inputs) -> int:
    """Number of samples of a tensor or a mapping of tensors."""
    first = next(iter(inputs.values()), None) if isinstance(inputs, Mapping) else inputs
    if not isinstance(first, Tensor) or first.ndim == 0 or len(first) == 0:
        raise UserError("inputs", type(inputs).__name__, "a tensor or a mapping of tensors with at least one sample")
    return len(first)


def forward_call(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """A call without arguments that runs ``model`` on ``inputs`` in inference mode: what the timers take.

    The network's mode is not touched inside the call; put it in evaluation mode first.
    """

    def call() -> Any:
        with torch.inference_mode():
            return _forward(model, inputs)

    return call


@dataclass(frozen=True)
class Timing:
    """Times of one call in milliseconds.

    ``speedup`` is how many times as fast it is as the first of those measured together: the median, over the
    rounds, of the first one's time over its own in the same round.
    """

    p50_ms: float
    p95_ms: float
    mean_ms: float
    runs: int
    speedup: float = 1.0

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


def compare_latency(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 100,
    warmup: int = 10,
    seconds: float | None = None,
) -> dict[str, Timing]:
    """Wall-clock times of several calls, interleaved, so that a machine that slows down slows all of them.

    Args:
        calls: name to a call without arguments, such as :func:`forward_call` on one sample for latency at
            batch 1.
        rounds: how often each is timed. Every round runs all of them, in an order that moves on by one.
        warmup: untimed runs of each beforehand.
        seconds: stop after this time even if rounds are missing (at least three are kept).

    Returns:
        name to :class:`Timing`, in the given order. On a GPU the device is waited for before and after every
        call.
    """
    if not calls:
        raise UserError("calls", "nothing", "at least one call")
    if rounds < 1 or warmup < 0:
        raise UserError("rounds and warmup", f"{rounds} and {warmup}", "at least 1 and at least 0")
    names = list(calls)
    for _ in range(warmup):
        for name in names:
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    with _no_collection():
        for turn in range(rounds):
            for offset in range(len(names)):
                name = names[(turn + offset) % len(names)]
                times[name].append(_milliseconds(calls[name]))
            if seconds is not None and turn >= 2 and time.perf_counter() - begun > seconds:
                break
    first = np.array(times[names[0]])
    table = {}
    for name in names:
        own = np.array(times[name])
        p50, p95 = (float(value) for value in np.percentile(own, [50, 95]))
        table[name] = Timing(p50, p95, float(own.mean()), len(own), float(np.median(first / own)))
    return table


def latency(call: Callable[[], Any], *, rounds: int = 100, warmup: int = 10, seconds: float | None = None) -> Timing:
    """Times of one call; to set two networks side by side use :func:`compare_latency`, in one run."""
    return compare_latency({"call": call}, rounds=rounds, warmup=warmup, seconds=seconds)["call"]


@dataclass(frozen=True)
class Throughput:
    """Samples per second at the median time of a call; ``speedup`` as in :class:`Timing`."""

    samples_per_second: float
    batch: int
    runs: int
    speedup: float = 1.0

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


def compare_throughput(
    calls: Mapping[str, Callable[[], Any]],
    batch: int,
    *,
    rounds: int = 20,
    warmup: int = 2,
    seconds: float | None = None,
) -> dict[str, Throughput]:
    """Samples per second of calls that handle ``batch`` samples each; see :func:`compare_latency`."""
    if batch < 1:
        raise UserError("batch", batch, "at least 1")
    times = compare_latency(calls, rounds=rounds, warmup=warmup, seconds=seconds)
    return {
        name: Throughput(batch * 1000 / max(timing.p50_ms, 1e-9), batch, timing.runs, timing.speedup)
        for name, timing in times.items()
    }


def _forward(model: nn.Module, inputs: Inputs) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _milliseconds(call: Callable[[], Any]) -> float:
    _wait()
    begun = time.perf_counter_ns()
    call()
    _wait()
    elapsed = (time.perf_counter_ns() - begun) / 1e6
    return elapsed if elapsed > 0 else math.ulp(1.0)


def _wait() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


@contextmanager
def _no_collection() -> Iterator[None]:
    # A garbage collection inside one call would be booked on whichever network ran then.
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
