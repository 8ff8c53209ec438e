"""Generations: a chain of networks that each begin anew and learn from those before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.views import epoch_seed
from limbeck.engine.fit import History
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.engine.program import Phase, run_program
from limbeck.errors import UserError
from limbeck.nn.gather import is_first_process
from limbeck.objectives.base import Objective
from limbeck.signals import Forward, move, run_network
from limbeck.sources import Live, Source, Table

Ancestors = Sequence[nn.Module]


class Generations:
    """A chain of networks, each taught by its ancestors: born-again networks, self-distillation, teacher assistants.

    Every generation is a fresh network. The first learns without a teacher, each later one from what ``teacher`` makes
    of its ancestors. These stay in eval mode, give no gradient, and are no part of the student or its checkpoint.

    >>> chain = Generations(lambda number: MLP(64), loader, epochs=10)
    >>> chain.grow(CrossEntropy())
    >>> for _ in range(3):
    ...     chain.grow(0.5 * CrossEntropy() + 0.5 * KL(temperature=2.0))
    >>> student = chain.networks[-1]

    Args:
        fresh: number of a generation (0 is the first) -> a network with fresh weights. The global generator is seeded
            for the call, with another seed for every generation, and restored after it.
        train: the loader of every generation.
        epochs, steps: length of a generation; one of the two.
        teacher: the ancestors, the oldest first -> a source. By default the newest: ``Live(ancestors[-1])`` run by
            ``forward``; for an ensemble of all, ``lambda all: Average([Live(one) for one in all])``.
        cached: ask the teacher once about every sample, before a generation, and keep the answers in memory. For
            samples that always look the same; an augmenting :class:`~limbeck.data.TensorLoader` is refused.
        ancestors: finished networks to begin with; the first new one is then generation ``len(ancestors)``.
        out: every generation keeps its checkpoint and weights there, in a folder of its own.
        resume: take up what ``out`` holds: finished generations are read, a cut one goes on to the same bits.
        seed: of initial weights and of what training draws; the loader has its own.
        options: anything else that :func:`~limbeck.engine.fit` takes.
    """

    def __init__(
        self,
        fresh: Callable[[int], nn.Module],
        train: Iterable[Any],
        *,
        epochs: int | None = None,
        steps: int | None = None,
        optimizer: OptimizerSettings | None = None,
        teacher: Callable[[Ancestors], Source] | None = None,
        cached: bool = False,
        ancestors: Ancestors = (),
        forward: Forward = run_network,
        out: Path | str | None = None,
        resume: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if cached and isinstance(train, TensorLoader) and train.transform is not None:
            raise UserError(
                "cached",
                True,
                "False for a loader with a transform",
                "an augmented sample has another answer every time",
            )
        self.fresh, self.train, self.epochs, self.steps = fresh, train, epochs, steps
        self.optimizer = optimizer or OptimizerSettings()
        self.teacher_of = teacher or (lambda ancestors: Live(ancestors[-1], forward=forward))
        self.cached, self.forward, self.seed, self.options = cached, forward, seed, options
        self.out, self.resume = Path(out) if out is not None else None, resume
        self.networks: list[nn.Module] = [network.eval() for network in ancestors]
        self.histories: dict[str, History] = {}
        self._teacher: tuple[int, tuple[str, ...], Source] | None = None
        if self.out is not None and not resume and is_first_process():
            # Else the generations of an older chain would be taken for this one's when it is resumed.
            for done in self.out.glob("generation-*/done.json"):
                done.unlink()

    @property
    def number(self) -> int:
        """The next generation's number."""
        return len(self.networks)

    def grow(self, objective: Objective) -> nn.Module:
        """Train the next generation and add it to the chain."""
        return self.adopt(self._train(objective, f"generation-{self.number}"))

    def attempt(self, objective: Objective, name: str) -> nn.Module:
        """Train what could be the next generation, with the initial weights that :meth:`grow` gives it.

        The chain stays as it is, so that several may be compared and one of them adopted. ``name`` tells one from the
        other in ``out`` and in ``histories``.
        """
        return self._train(objective, f"generation-{self.number}-{name}")

    def adopt(self, network: nn.Module) -> nn.Module:
        """Make ``network`` the next generation."""
        self.networks.append(network.eval())
        return network

    def report(self, assess: Callable[[nn.Module], Mapping[str, float]]) -> list[dict[str, float]]:
        """What ``assess`` says of every generation, the first of them first."""
        return [{"generation": float(number), **assess(one)} for number, one in enumerate(self.networks)]

    def teacher(self, needs: Iterable[str]) -> Source | None:
        """What teaches the next generation the signals ``needs``; None for the first, or where nothing is needed."""
        names = tuple(needs)
        if not self.networks or not names:
            return None
        if self._teacher is None or self._teacher[:2] != (self.number, names):
            source = self.teacher_of(self.networks)
            self._teacher = (self.number, names, self._asked_once(source, names) if self.cached else source)
        return self._teacher[2]

    def _asked_once(self, source: Source, needs: tuple[str, ...]) -> Table:
        device = "cuda" if torch.cuda.is_available() and self.options.get("accelerator") != "cpu" else "cpu"
        batches = self.train
        if isinstance(batches, TensorLoader):
            batches = TensorLoader(batches.columns, batches.batch_size, shuffle=False, collate=batches.collate)
        table = Table.of(source.to(device), (move(batch, device) for batch in batches), needs)
        source.to("cpu")
        return table

    def _train(self, objective: Objective, name: str) -> nn.Module:
        seed = epoch_seed(self.seed, self.number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.fresh(self.number)
        self._refuse_inherited(network)
        phase = Phase(
            name,
            objective,
            self.train,
            self.epochs,
            self.steps,
            teacher=self.teacher(objective.needs.teacher),
            optimizer=self.optimizer,
            forward=self.forward,
        )
        with torch.random.fork_rng(devices=[]):
            histories = run_program(network, [phase], out=self.out, resume=self.resume, seed=seed, **self.options)
        self.histories |= histories
        network.zero_grad(set_to_none=True)
        return network.eval()

    def _refuse_inherited(self, network: nn.Module) -> None:
        own = {id(parameter) for parameter in network.parameters()}
        for number, ancestor in enumerate(self.networks):
            if any(id(parameter) in own for parameter in ancestor.parameters()):
                raise UserError(
                    "fresh", f"a network that shares weights with generation {number}", "a new network at every call"
                )
