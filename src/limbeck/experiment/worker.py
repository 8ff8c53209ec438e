"""A worker process: reads tasks as JSON lines, runs them with one thread, answers as JSON lines.

Nothing heavy is imported at the top: the first task brings in torch and whatever the experiment needs, once
per process. A line protocol over pipes, and not pickles or ``multiprocessing``, because a worker must not
import the caller's ``__main__`` again and must die at once when its parent is killed.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.experiment.base import Experiment

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")

_loaded: dict[tuple[str, str], Experiment] = {}


def perform(task: Mapping[str, Any]) -> dict[str, Any]:
    """Run one task and return ``{"result": ...}``, or ``{"error": {...}}`` for anything that it raises."""
    try:
        return {"result": _perform(task)}
    except Exception as error:
        return {"error": failure(type(error).__name__, str(error), traceback.format_exc())}


def failure(kind: str, message: str, details: str = "") -> dict[str, str]:
    """What is kept of a failed task."""
    return {"type": kind, "message": message, "traceback": details}


def _perform(task: Mapping[str, Any]) -> dict[str, Any]:
    from limbeck.experiment.base import Exact, load_experiment, plain
    from limbeck.experiment.sources import loaded_sources

    key = (task["experiment"], task["size"])
    if key not in _loaded:
        _loaded[key] = load_experiment(*key)
    experiment = _loaded[key]
    start, processor_start = time.perf_counter(), time.process_time()
    if task["kind"] == "prepare":
        prepared: dict[str, Any] = plain(experiment.prepare())
        return prepared | {"seconds": time.perf_counter() - start, "accelerator": _accelerator()}
    if task["kind"] == "exact":
        claim = experiment.claims[task["index"]]
        assert isinstance(claim, Exact)
        return {"deviation": float(claim.check())}
    _one_thread()
    # Whatever an experiment forgets to seed must at least not depend on the order in which a process meets
    # its tasks.
    _seed_everything(task["seed"])
    record = experiment.run(task["arm"], task["seed"]).to_json()
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - processor_start}
    record["cost"] = {name: round(value, 3) for name, value in spent.items()} | record["cost"]
    return {"outcome": record, "sources": loaded_sources(task["experiment"].partition(":")[0])}


def _one_thread() -> None:
    import torch

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _seed_everything(seed: int) -> None:
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _accelerator() -> str:
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_initialized() else ""


def main() -> None:
    """Serve tasks until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an experiment prints belongs in the log, not among the answers
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            tasks.put(json.loads(line))
        os._exit(0)  # the parent is gone: no one would read an answer

    threading.Thread(target=listen, daemon=True).start()
    while True:
        answer = perform(tasks.get())
        answers.write(json.dumps(answer, allow_nan=True) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
