"""How a predictor is fitted to its samples: one step per batch as published, with a falling step, or to all of them.

A predictor counts visits only as far as it averages its samples. A constant step forgets: it averages over the last
``1 / step`` samples and keeps a noise floor of about ``step / 2`` of their variance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.errors import UserError


class Learning(Protocol):
    """Fits a network to ``(states, samples)``; made for one network by :meth:`attach`."""

    def attach(self, network: nn.Module) -> None: ...
    def step(self, states: Tensor, samples: Tensor) -> float: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Online:
    """One Adam step per batch on the mean squared error.

    Args:
        rate: learning rate.
        weight_decay: decoupled, as in AdamW.
        halved_after: updates after which the rate is halved, then a third after twice as many, and so on:
            ``rate / (1 + k / halved_after)``. None keeps it.
    """

    def __init__(self, rate: float = 3e-4, *, weight_decay: float = 0.0, halved_after: float | None = None) -> None:
        if not rate > 0 or (halved_after is not None and not halved_after > 0):
            raise UserError("rate, halved_after", (rate, halved_after), "positive numbers")
        self.rate, self.weight_decay, self.halved_after = rate, weight_decay, halved_after
        self.updates = 0

    def attach(self, network: nn.Module) -> None:
        """Train ``network`` from now on."""
        self.network = network
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=self.rate, weight_decay=self.weight_decay, fused=True)

    def step(self, states: Tensor, samples: Tensor) -> float:
        """One gradient step; returns the loss before it."""
        return self.descend(states, samples, None)

    def descend(self, states: Tensor, samples: Tensor, weights: Tensor | None) -> float:
        """One gradient step on the mean over rows, weighed by ``weights`` ``[B]``."""
        if self.halved_after is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate / (1 + self.updates / self.halved_after)
        errors = (self.network(states) - samples).square().mean(dim=-1)
        loss = errors.mean() if weights is None else (errors * weights).sum() / weights.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = int(state["updates"])


class Replay(Online):
    """Least squares over all samples so far: they are kept, and every batch is followed by several steps over them.

    Visits to the very same state are kept as one row with its number and the mean of its samples: the squared error
    of the mean, weighed by the number, has the same gradient as that of all samples. So a table of 100 states costs 100
    rows, however often they are visited, and the fit tends to the mean of the samples: the premise of the count law.
    States that never repeat to the last bit (whitened ones, whose moments move; noisy images) take a row per visit.

    Args:
        rate, weight_decay, halved_after: of the Adam steps.
        steps: gradient steps per batch of visits.
        batch_size: rows of one step, drawn with equal chances; all rows while there are no more than that.
        capacity: distinct states kept; beyond it a uniform reservoir.
        seed: of the draws.
    """

    def __init__(
        self,
        rate: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        halved_after: float | None = None,
        steps: int = 4,
        batch_size: int = 256,
        capacity: int = 50_000,
        seed: int = 0,
    ) -> None:
        super().__init__(rate, weight_decay=weight_decay, halved_after=halved_after)
        if min(steps, batch_size, capacity) < 1:
            raise UserError("steps, batch_size, capacity", (steps, batch_size, capacity), "at least 1")
        self.steps, self.batch_size, self.capacity = steps, batch_size, capacity
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: dict[bytes, int] = {}
        self.kept, self.distinct = 0, 0
        self.states, self.means, self.numbers = torch.empty(0), torch.empty(0), torch.empty(0)

    def step(self, states: Tensor, samples: Tensor) -> float:
        """Keep the samples, then ``steps`` gradient steps over what is kept; returns the last loss."""
        self._keep(states.detach(), samples.detach())
        loss = 0.0
        for _ in range(self.steps):
            chosen = self._draw()
            loss = self.descend(self.states[chosen], self.means[chosen], self.numbers[chosen])
        return loss

    def _keep(self, states: Tensor, samples: Tensor) -> None:
        rows: list[int] = []
        for state, key in zip(states, _keys(states)):
            row = self.rows.get(key)
            if row is None:
                row = self._place(state, samples)
                # What this very batch had put there is gone with the state that had to leave.
                rows = [-1 if earlier == row else earlier for earlier in rows]
                if row >= 0:
                    self.rows[key] = row
                    self.states[row], self.means[row], self.numbers[row] = state, 0.0, 0.0
            rows.append(row)
        chosen = torch.tensor(rows, device=samples.device)
        kept = chosen >= 0
        chosen, samples = chosen[kept], samples[kept]
        self.numbers.index_add_(0, chosen, torch.ones_like(samples[:, 0]))
        steps = (samples - self.means[chosen]) / self.numbers[chosen, None]
        self.means.index_add_(0, chosen, steps)

    def _place(self, state: Tensor, samples: Tensor) -> int:
        """A row for a state that is new, or -1: beyond the capacity every state ever met has the same chance."""
        self.distinct += 1
        if self.kept < self.capacity:
            self._grow(self.kept, state, samples[0])
            self.kept += 1
            return self.kept - 1
        row = int(torch.randint(self.distinct, (), generator=self.generator))
        if row >= self.capacity:
            return -1
        del self.rows[_keys(self.states[row : row + 1])[0]]
        return row

    def _grow(self, row: int, state: Tensor, sample: Tensor) -> None:
        room = len(self.numbers)
        if row < room:
            return
        wanted = min(self.capacity, max(256, 2 * room))
        for name, like in (("states", state), ("means", sample), ("numbers", sample.new_zeros(()))):
            grown = like.new_zeros((wanted, *like.shape))
            if room:
                grown[:room] = getattr(self, name)
            setattr(self, name, grown)

    def _draw(self) -> Tensor:
        if self.kept <= self.batch_size:
            return torch.arange(self.kept)
        return torch.randint(self.kept, (self.batch_size,), generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name)[: self.kept].clone() for name in ("states", "means", "numbers")}
        return super().state_dict() | kept | {"distinct": self.distinct, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("states", "means", "numbers"):
            setattr(self, name, state[name].clone())
        self.kept, self.distinct = len(self.numbers), int(state["distinct"])
        self.rows = {key: index for index, key in enumerate(_keys(self.states))}
        self.generator.set_state(state["generator"])


def _keys(states: Tensor) -> list[bytes]:
    return [row.tobytes() for row in states.cpu().numpy()]
