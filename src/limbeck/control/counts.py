"""Counters: the bonus n^-power by exact visits or by hashed ones, without any network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.control.intrinsic import IntrinsicReward, checked
from limbeck.errors import UserError


class ExactCounts(IntrinsicReward):
    """``max(n, 1)^-power`` for a state visited n times; two states are the same when all their numbers are.

    The oracle of tables. On observations that hardly ever repeat (floats, images with noise) everything stays new.

    Args:
        power: 1 for the bonus 1/n that RDD estimates, 0.5 for that of count-based exploration.
    """

    def __init__(self, power: float = 1.0) -> None:
        if not power > 0:
            raise UserError("power", power, "a positive number")
        self.power = power
        self.counts: dict[bytes, int] = {}

    def keys(self, states: Tensor) -> list[bytes]:
        """What tells states apart, one for each row."""
        flat = checked(states).detach().flatten(1).double().cpu().numpy()
        # -0.0 and 0.0 are the same number with other bytes.
        return [row.tobytes() for row in flat + 0.0]

    def update(self, states: Tensor) -> dict[str, float]:
        for key in self.keys(states):
            self.counts[key] = self.counts.get(key, 0) + 1
        return {"distinct": float(len(self.counts))}

    def count(self, states: Tensor) -> Tensor:
        """Visits so far, int64 ``[B]``."""
        return torch.tensor([self.counts.get(key, 0) for key in self.keys(states)], dtype=torch.int64)

    def bonus(self, states: Tensor) -> Tensor:
        return self.count(states).clamp_min(1).float().pow(-self.power).to(states.device)

    def state_dict(self) -> dict[str, Any]:
        keys = b"".join(self.counts)
        return {
            "keys": torch.tensor(list(keys), dtype=torch.uint8).reshape(len(self.counts), -1)
            if self.counts
            else torch.empty(0, 0, dtype=torch.uint8),
            "numbers": torch.tensor(list(self.counts.values()), dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts = {bytes(key.numpy().tobytes()): int(n) for key, n in zip(state["keys"], state["numbers"])}


class HashCounts(ExactCounts):
    """Counts of SimHash codes: the signs of random projections (Tang et al., arXiv:1611.04717).

    States at a small angle share their counts. For observations too fine to repeat.

    Args:
        features: numbers of one state, flattened.
        bits: of the code; more bits tell more states apart.
        seed: of the projections.
    """

    def __init__(self, features: int, bits: int = 16, power: float = 1.0, seed: int = 0) -> None:
        super().__init__(power)
        if bits < 1:
            raise UserError("bits", bits, "at least 1")
        self.projections = torch.randn(features, bits, generator=torch.Generator().manual_seed(seed))

    def keys(self, states: Tensor) -> list[bytes]:
        flat = checked(states).detach().flatten(1).float().cpu()
        if flat.shape[1] != len(self.projections):
            raise UserError("states", f"{flat.shape[1]} numbers per state", f"{len(self.projections)}")
        codes = (flat @ self.projections > 0).to(torch.uint8).numpy()
        return [row.tobytes() for row in codes]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"projections": self.projections.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.projections = state["projections"].clone()
