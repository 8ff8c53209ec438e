"""Peak memory: of a function, measured where nothing else runs, or of a stretch of this process.

On a CPU it is the resident memory of a fresh process, as the operating system counts it: weights,
activations, optimiser, data and the libraries' own. ``growth`` leaves out what was there before the function
began (Python, torch, the arguments), which is the figure to compare. On a GPU it is what torch's allocator
had handed out at most.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from limbeck.errors import LimbeckError, UserError


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the ``peak`` and before (``baseline``); ``kind`` is what was counted, ``rss`` or ``cuda``."""

    peak: int
    baseline: int
    kind: str

    @property
    def growth(self) -> int:
        """Bytes that the function added at its highest."""
        return max(0, self.peak - self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "growth": self.growth}


@contextmanager
def watched_memory(device: torch.device | str = "cpu") -> Iterator[list[PeakMemory]]:
    """The peak of what runs in this process inside the block, put into the list that the block is given.

    What was used and given up before can stay with the process, so that less than is needed may show;
    :func:`peak_memory` has no such past. Where the system does not forget earlier peaks (Linux does), ``growth`` counts
    from the highest of them.
    """
    found: list[PeakMemory] = []
    on_cuda = torch.device(device).type == "cuda"
    # Reference cycles (a trainer, its networks) are given up some time or other, and not inside the block.
    gc.collect()
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        baseline = torch.cuda.memory_allocated()
    else:
        baseline = _restart_peak()
    yield found
    if on_cuda:
        torch.cuda.synchronize()
        found.append(PeakMemory(torch.cuda.max_memory_allocated(), baseline, "cuda"))
    else:
        found.append(PeakMemory(_status("VmHWM"), baseline, "rss"))


def peak_memory(
    function: Callable[..., Any],
    *arguments: Any,
    device: str = "cpu",
    warmup: Callable[..., Any] | None = None,
) -> PeakMemory:
    """Peak memory of ``function(*arguments)``; its result is dropped.

    Args:
        function: for a CPU one that a fresh process can import: defined at the top of a module, no lambda.
        arguments: plain values or tensors; a network is better built inside the function, so that it is
            counted.
        device: ``cpu`` starts a process of its own, ``cuda`` measures in this one.
        warmup: called with the same arguments before counting starts (imports and code caches are not the
            method's).
    """
    if torch.device(device).type == "cuda":
        return _on_cuda(device, function, arguments, warmup)
    if device != "cpu":
        raise UserError("device", device, ["cpu", "cuda"])
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments, warmup), daemon=True)
    try:
        process.start()
    except Exception as error:  # Whatever pickling says; its errors share no class.
        raise UserError(
            "function",
            getattr(function, "__qualname__", repr(function)),
            "a function at the top of a module",
            str(error),
        ) from error
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise LimbeckError(f"the measured process died with exit code {process.exitcode} (out of memory?)") from None
    finally:
        receiver.close()
    process.join()
    if isinstance(answer, str):
        raise LimbeckError(f"the measured function failed: {answer}")
    return PeakMemory(answer[0], answer[1], "rss")


def kept_for_backward(function: Callable[[], Any]) -> int:
    """Bytes of all tensors that autograd keeps until the backward pass of what ``function()`` returns.

    Each storage counts once, parameters and inputs among them. Unlike a peak this depends on shapes alone, so that it
    is the same on every machine.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Holding the storage keeps its address from being given out again.
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in kept.values())


def _child(
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    warmup: Callable[..., Any] | None,
) -> None:
    try:
        if warmup is not None:
            warmup(*arguments)
        with watched_memory() as found:
            function(*arguments)
        sender.send((found[0].peak, found[0].baseline))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
    finally:
        sender.close()


def _restart_peak() -> int:
    """Resident bytes now; forgets the earlier peak where the system allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        # Then the peak of the imports stays in; it is far below that of any training worth measuring.
        return _status("VmHWM")
    return _status("VmRSS")


def _status(field: str) -> int:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Outside Linux; there a new process starts its own count.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _on_cuda(
    device: str, function: Callable[..., Any], arguments: tuple[Any, ...], warmup: Callable[..., Any] | None
) -> PeakMemory:
    if not torch.cuda.is_available():
        raise UserError("device", "cuda", "cpu", "this machine has no CUDA device")
    if warmup is not None:
        warmup(*arguments)
    with watched_memory(device) as found:
        function(*arguments)
    return found[0]
