"""What an experiment is: arms, claims and outcomes, as data that read like a table."""

from __future__ import annotations

import importlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import UserError

ROLES = ("none", "rival", "method", "control", "ablation")
VERDICTS = ("reproduced", "not reproduced", "inconclusive")
_PICTURE = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/]+={0,2}")
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=@-]*")


@dataclass(frozen=True)
class Arm:
    """One way of training that an experiment compares.

    Args:
        setting: whatever the experiment reads to run this arm: an objective, a function that makes one,
            ``None``.
        description: one line for tables.
        role: ``none`` (no distillation), ``rival``, ``method``, ``control`` (could refute the claim) or
            ``ablation``.
        options: departures of this arm from the experiment's common settings, such as ``{"batch_size": 16}``.
    """

    setting: Any
    description: str
    role: str = "method"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper as a comparison: ``arm`` beats ``over`` on ``metric`` by more than ``margin``.

    The difference is paired over seeds and signed so that positive means that ``arm`` is better. The verdict
    is ``reproduced`` when the whole 95% interval of its mean lies above ``margin``, ``not reproduced`` when
    it lies below, else ``inconclusive``. A negative margin says "not worse by more than".
    """

    text: str
    arm: str
    over: str
    metric: str
    margin: float = 0.0
    better: str = "higher"
    source: str = ""


@dataclass(frozen=True)
class Exact:
    """A statement that mathematics decides: ``check()`` measures a deviation of at most ``tolerance``."""

    text: str
    check: Callable[[], float]
    tolerance: float
    source: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one arm with one seed gave.

    Args:
        metrics: numbers on the test split; a value that is not finite says that the arm diverged.
        curves: series over training, one value per epoch (or per recorded step).
        cost: ``seconds`` and whatever else was spent; the worker adds wall and processor seconds.
        notes: small JSON-able extras. ``notes["reliability"]`` (``confidence``, ``accuracy``, ``share`` per
            bin) is drawn.
        pictures: caption -> data URI (``data:image/png;base64,...``) of what is better looked at than read; the
            report shows them by arm. Make them with :mod:`limbeck.experiment.pictures`, for one seed of a few arms:
            the ledger keeps them, and refuses more than 60 kB per entry.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As strict JSON: a number that is not finite becomes null, and ``diverged`` names its metric."""
        record: dict[str, Any] = {
            "metrics": {name: finite(value) for name, value in self.metrics.items()},
            "cost": {name: finite(value) for name, value in self.cost.items()},
            "curves": {name: [finite(value) for value in series] for name, series in self.curves.items()},
        }
        diverged = sorted(name for name, value in record["metrics"].items() if value is None)
        if diverged:
            record["diverged"] = diverged
        if self.notes:
            record["notes"] = plain(self.notes)
        if self.pictures:
            record["pictures"] = {caption: checked_picture(uri) for caption, uri in self.pictures.items()}
        return record


class Experiment(ABC):
    """Arms times seeds on a testbed, with claims.

    A subclass states ``arms`` and ``claims`` as data and says in :meth:`run` how one arm is run.
    :meth:`prepare` is called
    once, in one process, before any arm: it builds what all share (data, teacher) into the cache folder.
    :meth:`run` may be called in another process or on another machine, so it loads what it needs by itself.
    It is pure in (arm, seed, code, data): the same call gives the same outcome. Selection happens on
    validation data, never on test.
    """

    name: str = "main"
    title: str = ""
    testbed: str = ""
    metric: str = "accuracy"
    arms: Mapping[str, Arm] = {}
    claims: Sequence[Claim | Exact] = ()
    seeds: Mapping[str, Sequence[int]] = {"smoke": (0, 1), "full": (0, 1, 2, 3, 4)}
    #: Names that arms may have in their options; None: whatever a subclass reads.
    options: tuple[str, ...] | None = None

    def __init__(self, size: str = "full") -> None:
        if size not in self.seeds:
            raise UserError("size", size, self.seeds)
        self.size = size

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the arms that could refute the claims."""
        return tuple(name for name, arm in self.arms.items() if arm.role == "control")

    def prepare(self) -> dict[str, Any]:
        """Build what the arms share.

        Returns:
            ``gate``: ``{"passed", "checks": [{"name", "value", "bound", "passed"}]}``; ``data``: SHA-256 of
            every artefact; ``reference``: metrics to compare with, such as ``{"teacher": {"accuracy":
            0.93}}``.
        """
        return {"gate": {"passed": True, "checks": []}, "data": {}, "reference": {}}

    @abstractmethod
    def run(self, arm: str, seed: int) -> Outcome:
        """Run one arm with one seed."""

    def check(self) -> None:
        """Refuse an experiment whose claims name arms that do not exist, and the like."""
        key = f"experiment {self.name}"
        if not self.arms:
            raise UserError(f"{key}: arms", "", "at least one arm")
        for name, arm in self.arms.items():
            if not _ARM_NAME.fullmatch(name):
                raise UserError(f"{key}: arm name", name, "letters, digits and _ . + = @ - (it becomes a folder)")
            if arm.role not in ROLES:
                raise UserError(f"{key}: role of arm {name}", arm.role, ROLES)
            for option in arm.options:
                if self.options is not None and option not in self.options:
                    raise UserError(f"option of arm {name}", option, self.options)
        for claim in self.claims:
            if isinstance(claim, Claim):
                for side in (claim.arm, claim.over):
                    if side not in self.arms:
                        raise UserError(f"{key}: arm of the claim '{claim.text}'", side, self.arms)
                if claim.better not in ("higher", "lower"):
                    raise UserError(f"{key}: better of the claim '{claim.text}'", claim.better, ("higher", "lower"))


def load_experiment(reference: str, size: str = "full") -> Experiment:
    """The experiment of ``"package.module:NAME"``: a key of its ``EXPERIMENTS``, or a class of that name."""
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise UserError("experiment", reference, "package.module:NAME")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            "experiment", reference, "a module that Python can import", f"{error.name} is not found"
        ) from error
    known: dict[str, Any] = dict(getattr(module, "EXPERIMENTS", {}))
    kind = known.get(name, getattr(module, name, None))
    if not (isinstance(kind, type) and issubclass(kind, Experiment)):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Experiment)
        ]
        raise UserError("experiment", reference, list(known) or [key for key in classes if key != "Experiment"])
    experiment = kind(size)
    experiment.check()
    return experiment


def checked_picture(uri: str) -> str:
    """The data URI of an image as it is, or an error: a page shows nothing else, and fetches nothing."""
    if not _PICTURE.fullmatch(uri):
        raise UserError("pictures", uri[:40], "data:image/png;base64,... or data:image/svg+xml;base64,...")
    return uri


def finite(value: Any) -> float | None:
    """The number as a float, or None where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """The value in JSON's own types: arrays become lists, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return finite(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise UserError("outcome", type(value).__name__, "numbers, text, lists, mappings, arrays")
