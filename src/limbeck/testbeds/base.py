"""What a testbed is: real data with splits, a teacher, a student, metrics, and a gate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from limbeck.data.split import Split, Splits
from limbeck.errors import UserError

Size = Literal["full", "smoke"]

__all__ = ["Check", "Gate", "Size", "Split", "Splits", "Testbed"]


@dataclass(frozen=True)
class Check:
    """One condition of a gate: ``value`` within ``[low, high]``."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the value lies within its bounds."""
        return self.low <= self.value <= self.high

    @property
    def bound(self) -> str:
        """The bounds in words."""
        return f"{self.low:.4g} to {self.high:.4g}"

    def as_dict(self) -> dict[str, Any]:
        """``{name, value, bound, passed}``, for the ledger."""
        return {"name": self.name, "value": self.value, "bound": self.bound, "passed": self.passed}


@dataclass(frozen=True)
class Gate:
    """Whether the testbed can show an effect at all. Results behind a closed gate are void."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """``{passed, checks}``, for the ledger."""
        return {"passed": self.passed, "checks": [check.as_dict() for check in self.checks]}


class Testbed(ABC):
    """Real data in one regime and one size.

    Args:
        regime: one of ``regimes``; it decides how much data the student and the teacher see.
        size: ``full``, or ``smoke`` for tests that take seconds.

    The test samples are the same for every seed. Where a data set is too small for that (188 molecules), ``folds`` says
    into how many parts it is cut, and the seed names the part that is the test: all arms of a seed share it, so
    differences stay paired.
    """

    folds: ClassVar[int] = 0

    __test__ = False  # the name is no test case

    name: ClassVar[str]
    regimes: ClassVar[Mapping[str, Any]]

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        if regime not in self.regimes:
            raise UserError(f"regime of {self.name}", regime, self.regimes)
        if size not in ("full", "smoke"):
            raise UserError("size", size, ("full", "smoke"))
        self.regime, self.size = regime, size

    @property
    def reference(self) -> str:
        """``NAME:REGIME``, as :func:`limbeck.testbeds.load` reads it."""
        return f"{self.name}:{self.regime}"

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes of the targets."""

    @abstractmethod
    def data_hashes(self) -> dict[str, str]:
        """SHA-256 of everything the data are made from, by name; results record them."""

    @abstractmethod
    def splits(self, seed: int = 0) -> Splits:
        """Training, validation and test samples. Without ``folds`` only the training samples may depend on ``seed``."""

    @abstractmethod
    def teacher(self) -> nn.Module:
        """The frozen teacher, made once and kept in the cache folder."""

    @abstractmethod
    def student(self, seed: int = 0) -> nn.Module:
        """A fresh student whose initial weights are a function of ``seed``."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """The testbed's metrics of ``model`` on ``split``."""

    @abstractmethod
    def gate(self) -> Gate:
        """The sanity checks; made once and kept."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reference!r}, size={self.size!r})"
