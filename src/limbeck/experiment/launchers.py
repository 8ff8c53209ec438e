"""Where the tasks of an experiment run: worker processes of this machine, or a ray cluster."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from limbeck.errors import UserError, require
from limbeck.experiment.worker import ONE_THREAD, failure, perform

LAUNCHERS = ("local", "ray")


@dataclass(frozen=True)
class Task:
    """One piece of work, as text: the experiment itself is never pickled, its reference is."""

    kind: str
    experiment: str
    size: str
    arm: str = ""
    seed: int = 0
    index: int = 0

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}" if self.kind == "run" else self.kind


Answer = dict[str, Any]


class Launcher(ABC):
    """Runs tasks; a context manager, so that no process outlives it."""

    @abstractmethod
    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Answer]]:
        """Yield every task with its answer, ``{"result"}`` or ``{"error"}``, as it ends, in any order.

        Closing the generator early stops the rest.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop whatever still runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalLauncher(Launcher):
    """``jobs`` single-threaded worker processes, kept between tasks, so that each imports torch once."""

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise UserError("jobs", jobs, "1 or more")
        self._workers = [_Worker() for _ in range(jobs)]

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Answer]]:
        waiting, answers = deque(tasks), queue.SimpleQueue[tuple[Task, Answer]]()

        def serve(worker: _Worker) -> None:
            # popleft is atomic, so two threads never take the same task.
            with contextlib.suppress(IndexError):
                while True:
                    task = waiting.popleft()
                    answers.put((task, worker.perform(task)))

        for worker in self._workers[: len(tasks)]:
            threading.Thread(target=serve, args=(worker,), daemon=True).start()
        finished = False
        try:
            for _ in tasks:
                yield answers.get()
            finished = True
        finally:
            if not finished:
                waiting.clear()
                self.close()

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


class _Worker:
    """One worker process, started when it is first needed and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._log: Any = None

    def perform(self, task: Task) -> Answer:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps(asdict(task)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        with contextlib.suppress(json.JSONDecodeError):
            answer: Answer = json.loads(line)
            return answer
        self.stop()
        return {"error": failure("WorkerDied", f"the worker process {_end(process.returncode)}", self._tail())}

    def _start(self) -> subprocess.Popen[str]:
        environment = (
            os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        )
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then stops the workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "limbeck.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        return self._process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # The pipes are left to their last reader: closing them here would race with a thread that is reading.

    def _tail(self, lines: int = 20) -> str:
        self._log.seek(0)
        return "".join(self._log.readlines()[-lines:])


class RayLauncher(Launcher):
    """Tasks on a ray cluster: the one at ``address`` or ``RAY_ADDRESS``, else a local one with ``jobs``
    processors.

    Every machine of the cluster needs limbeck and builds the shared data and teacher in its own cache folder.
    """

    def __init__(self, jobs: int = 1, address: str = "") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = require("ray", "many")
        self._started = not self._ray.is_initialized()
        if self._started:
            address = address or os.environ.get("RAY_ADDRESS", "")
            variables: dict[str, str] = dict(ONE_THREAD)
            if address:
                self._ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": variables})
            else:
                variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
                self._ray.init(
                    num_cpus=jobs,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    runtime_env={"env_vars": variables},
                )

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Answer]]:
        remote = self._ray.remote(num_cpus=1, max_retries=0)(perform)
        running = {remote.remote(asdict(task)): task for task in tasks}
        try:
            while running:
                done, _ = self._ray.wait(list(running), num_returns=1)
                for reference in done:
                    task = running.pop(reference)
                    try:
                        yield task, self._ray.get(reference)
                    except self._ray.exceptions.RayError as error:
                        yield (
                            task,
                            {"error": failure("WorkerDied", str(error).strip().splitlines()[0], str(error))},
                        )
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()


def make_launcher(name: str, jobs: int) -> Launcher:
    """``local``, ``ray`` or ``ray:ADDRESS``."""
    kind, _, address = name.partition(":")
    if kind == "local" and not address:
        return LocalLauncher(jobs)
    if kind == "ray":
        return RayLauncher(jobs, address)
    raise UserError("launcher", name, LAUNCHERS)


def write_aside(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
