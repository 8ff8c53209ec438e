"""Alternation: forms of one task that label for each other in turn, cycle after cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.views import epoch_seed
from limbeck.engine.fit import History
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.engine.program import Phase, run_program
from limbeck.errors import UserError
from limbeck.objectives.base import Objective
from limbeck.signals import Batch, Forward, move, run_network
from limbeck.sources import Average, Live, PseudoLabels, Source


@dataclass(frozen=True)
class HalfCycle:
    """The training of one network.

    Attributes:
        cycle: from 1.
        form: its name.
        member: which of the networks that learn side by side, from 0.
        previous: the member's network of the form before, which was among the labellers.
        start: the network that the member began with.
    """

    cycle: int
    form: str
    member: int
    previous: nn.Module
    start: nn.Module

    @property
    def name(self) -> str:
        """``cycle-1-cross-0``: what this turn's files are called."""
        return f"cycle-{self.cycle}-{self.form}-{self.member}"


@dataclass
class Form:
    """One way of stating the task: a kind of network, its objective, and the pool as it wants it.

    Attributes:
        name: such as ``bi`` or ``cross``.
        initial: a turn -> the network to train. The global generator is seeded for the call.
        objective: makes the objective; it reads the labels as a teacher's signals.
        train: a seed -> the loader. Batches hold the ids by which labels are found; a sample may occur several times.
        ask: makes the pool's batches in a fixed order, each sample once, for labelling.
        epochs, steps: length of a turn; one of the two.
        forward: how to run the network.
        options: anything else that :func:`~limbeck.engine.fit` takes, such as ``validate`` and ``select``.
    """

    name: str
    initial: Callable[[HalfCycle], nn.Module]
    objective: Callable[[], Objective]
    train: Callable[[int], Iterable[Any]]
    ask: Callable[[], Iterable[Batch]]
    epochs: int | None = None
    steps: int | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    forward: Forward = run_network
    options: Mapping[str, Any] = field(default_factory=dict)


def mean_of(labels: Sequence[Source]) -> Source:
    """The one labeller, or the average of several."""
    return labels[0] if len(labels) == 1 else Average(labels)


class Alternation:
    """Networks of several forms that take turns as teacher and student, with or without partners.

    In each cycle the forms have their turn in order. Before a form's turn the networks of the form before (at the very
    beginning the ``start`` networks, which are of the last form) label the pool; then each member's network learns
    these labels, averaged over the members. Labels are a table: nobody learns from a network that is learning.

    >>> alternation = Alternation([[cross, bi]], start=[encoder], signal="score")
    >>> for turn, network in alternation.run(cycles=3):
    ...     print(turn.name, assess(network))

    Args:
        members: for each member its forms, with the same names in the same order; two members may have other
            tokenizers, widths and depths. One member is self-distillation, several are mutual distillation.
        start: one network per member, of the last form; it stays as it is.
        signal: what is labelled: the name of a signal that every form gives.
        labels: the store of labels; in memory by default.
        combine: the members' labels -> the teacher of all; their mean by default.
        out: every turn keeps its checkpoint and weights there, in a folder of its own.
        resume: take up what ``out`` holds: finished turns are read, a cut one goes on to the same bits.
        seed: of initial heads, the order of samples and dropout; another one for every turn.
        options: anything else that :func:`~limbeck.engine.fit` takes.
    """

    def __init__(
        self,
        members: Sequence[Sequence[Form]],
        start: Sequence[nn.Module],
        *,
        signal: str = "score",
        labels: PseudoLabels | None = None,
        combine: Callable[[Sequence[Source]], Source] = mean_of,
        out: Path | str | None = None,
        resume: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        names = [[form.name for form in forms] for forms in members]
        if not names or not names[0] or any(one != names[0] for one in names) or len(set(names[0])) < len(names[0]):
            raise UserError("members", names, "one or more, with forms of the same different names in the same order")
        if len(start) != len(members):
            raise UserError("start", f"{len(start)} networks", f"one per member, {len(members)}")
        self.members, self.start = [list(forms) for forms in members], [one.eval() for one in start]
        self.signal, self.labels, self.combine = signal, labels or PseudoLabels(), combine
        self.out, self.resume = Path(out) if out is not None else None, resume
        self.seed, self.options = seed, options
        self.networks: list[nn.Module] = self.start
        self.histories: dict[str, History] = {}
        if not resume:
            # Else the labels of an older run would be met, and refused.
            self.labels.clear()

    def run(self, cycles: int) -> Iterable[tuple[HalfCycle, nn.Module]]:
        """Every turn with its trained network, one after the other; a turn is trained when it is asked for.

        ``networks`` are always the newest of every member.
        """
        if cycles < 1:
            raise UserError("cycles", cycles, "1 or more")
        for cycle in range(1, cycles + 1):
            for place in range(len(self.members[0])):
                teacher = self._label(cycle, place)
                trained = []
                for member, forms in enumerate(self.members):
                    turn = HalfCycle(cycle, forms[place].name, member, self.networks[member], self.start[member])
                    trained.append(self._train(turn, forms[place], place, teacher))
                    yield turn, trained[-1]
                self.networks = trained

    def _label(self, cycle: int, place: int) -> Source:
        """What the newest networks, those of the form before, say about the pool."""
        labels = []
        for member, (forms, network) in enumerate(zip(self.members, self.networks, strict=True)):
            # At place 0 this is the last form: of the cycle before, or of the start.
            form = forms[place - 1]
            source = Live(network, forward=form.forward).to(self._device)
            batches = (move(batch, self._device) for batch in form.ask())
            labels.append(self.labels.ask(cycle, f"{form.name}-{member}", source, batches, (self.signal,)))
            source.to("cpu")
        return self.combine(labels)

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() and self.options.get("accelerator") != "cpu" else "cpu"

    def _train(self, turn: HalfCycle, form: Form, place: int, teacher: Source) -> nn.Module:
        number = (turn.cycle * len(self.members[0]) + place) * len(self.members) + turn.member
        seed = epoch_seed(self.seed, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = form.initial(turn).requires_grad_(True)
            if network is turn.previous or network is turn.start:
                raise UserError("initial", "a network that labels", "a copy of it, or a new one")
            phase = Phase(
                turn.name,
                form.objective(),
                form.train(seed),
                form.epochs,
                form.steps,
                teacher=teacher,
                optimizer=form.optimizer,
                forward=form.forward,
                options=form.options,
            )
            histories = run_program(network, [phase], out=self.out, resume=self.resume, seed=seed, **self.options)
        self.histories |= histories
        network.zero_grad(set_to_none=True)
        return network.eval()
