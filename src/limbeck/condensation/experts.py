"""Where features come from while a set is distilled: a new network for every step, in one place that taps can read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.condensation.evaluation import Training, train_fresh
from limbeck.data.split import Split
from limbeck.errors import UserError

State = Mapping[str, Tensor]


class Networks(ABC):
    """Networks of one architecture that follow one another.

    Attributes:
        network: holds the weights of the latest draw: frozen, in eval mode, always the same module. Gradients flow
            through it to its input.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False).eval()

    @abstractmethod
    def draw(self) -> int:
        """Put the next network in place, by torch's global generator; the number of the expert it comes from."""

    def trained(self, expert: int) -> nn.Module:
        """The trained end of an expert, for calibration."""
        raise UserError("calibration", type(self).__name__, "an ExpertPool: these networks were never trained")


class FreshNetworks(Networks):
    """A network with new random weights for every step, as distribution matching (DM) has it."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__(build())
        self.build = build

    def draw(self) -> int:
        self.network.load_state_dict(self.build().state_dict())
        return 0


class ExpertPool(Networks):
    """Trained networks whose beginnings are known too: a draw is a random mixture of an expert's beginning and end.

    ``w = l * w_initial + (1 - l) * w_trained``, ``l ~ U(0, 1)``: networks of every stage of training for the storage of
    two.

    Args:
        build: makes a network of the architecture.
        initial, trained: state of every expert before and after its training.
    """

    def __init__(self, build: Callable[[], nn.Module], initial: Sequence[State], trained: Sequence[State]) -> None:
        if not initial or len(initial) != len(trained):
            raise UserError("experts", f"{len(initial)} initial, {len(trained)} trained", "as many of both, at least 1")
        super().__init__(build())
        self.initial, self.final = [dict(state) for state in initial], [dict(state) for state in trained]
        self._end = build().requires_grad_(False).eval()

    @classmethod
    def train(
        cls, build: Callable[[], nn.Module], real: Split, training: Training, *, count: int, seed: int = 0
    ) -> ExpertPool:
        """Train ``count`` experts on ``real``, with seeds of their own."""
        initial, trained = [], []

        def remembered() -> nn.Module:
            network = build()
            initial.append({name: value.detach().clone() for name, value in network.state_dict().items()})
            return network

        for number in range(count):
            model = train_fresh(remembered, real, training, seed=seed + number)
            trained.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        return cls(build, initial, trained)

    def __len__(self) -> int:
        """Number of experts."""
        return len(self.final)

    def draw(self) -> int:
        expert = int(torch.randint(len(self), ()))
        self.mix(expert, float(torch.rand(())))
        return expert

    @torch.no_grad()
    def mix(self, expert: int, share: float) -> None:
        """Put ``share`` of an expert's beginning and the rest of its end in place; counters are those of the end."""
        initial, final = self.initial[expert], self.final[expert]
        for name, place in self.network.state_dict().items():
            if place.is_floating_point():
                torch.lerp(final[name], initial[name], share, out=place)
            else:
                place.copy_(final[name])

    def trained(self, expert: int) -> nn.Module:
        self._end.load_state_dict(self.final[expert])
        return self._end

    def tensors(self) -> dict[str, Tensor]:
        """Everything as one mapping, to be kept in a file."""
        return {
            f"{kind}.{number}.{name}": value
            for kind, states in (("initial", self.initial), ("final", self.final))
            for number, state in enumerate(states)
            for name, value in state.items()
        }

    @classmethod
    def of(cls, build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> ExpertPool:
        """The pool that :meth:`tensors` wrote."""
        states: dict[str, dict[int, dict[str, Tensor]]] = {"initial": {}, "final": {}}
        for key, value in tensors.items():
            kind, number, name = key.split(".", 2)
            states[kind].setdefault(int(number), {})[name] = value
        kept = [[states[kind][number] for number in sorted(states[kind])] for kind in ("initial", "final")]
        return cls(build, kept[0], kept[1])
