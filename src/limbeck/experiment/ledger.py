"""The ledger: ``ledger/FAMILY/SLUG.json``, the committed record of what every experiment gave.

    {"schema": 1, "slug": ..., "entries": {NAME: entry}}

An entry is what :func:`limbeck.experiment.runner.run_experiment` returns. Pages and tables are made from it,
never by hand.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.experiment.base import ROLES, VERDICTS
from limbeck.experiment.launchers import write_aside

SCHEMA = 1
PICTURE_BYTES = 60_000
_ENTRY: dict[str, type | tuple[type, ...]] = {
    "size": str,
    "testbed": str,
    "metric": str,
    "seeds": list,
    "gate": dict,
    "reference": dict,
    "arms": dict,
    "claims": list,
    "versions": dict,
    "data": dict,
    "machine": dict,
    "command": str,
    "started": str,
    "seconds": (int, float),
    "commit": str,
    "dirty": bool,
    "notes": dict,
}
_PACKAGES = (
    "limbeck",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "lightning",
    "torchmetrics",
    "transformers",
    "sentence-transformers",
    "timm",
    "diffusers",
    "peft",
    "torch-geometric",
    "gymnasium",
    "monai",
    "onnxruntime",
)


def ledger_root() -> Path:
    """``$LIMBECK_LEDGER``; else the checkout's ``ledger``; else the installed package's copy."""
    if given := os.environ.get("LIMBECK_LEDGER"):
        return Path(given)
    package = Path(__file__).resolve().parents[1]
    bundled = package / "_ledger"
    return bundled if bundled.is_dir() else package.parents[1] / "ledger"


def ledger_path(family: str, slug: str, root: str | Path | None = None) -> Path:
    """The file of one system."""
    return Path(root or ledger_root()) / family / f"{slug}.json"


def read(family: str, slug: str, root: str | Path | None = None) -> dict[str, Any]:
    """The validated ledger of a system; one without entries where nothing is recorded yet."""
    path = ledger_path(family, slug, root)
    if not path.exists():
        return {"schema": SCHEMA, "slug": slug, "entries": {}}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"ledger {path}", f"text that is not JSON ({error})", "a ledger file") from error
    validate(document, str(path))
    if document["slug"] != slug:
        raise UserError(f"ledger {path}: slug", document["slug"], slug)
    return dict(document)


def write(family: str, slug: str, name: str, entry: Mapping[str, Any], root: str | Path | None = None) -> Path:
    """Put ``entry`` into the system's ledger under ``name``, keeping the other entries.

    Refused are entries that are not the whole experiment: smoke runs, a part of the arms or seeds, failed
    runs.
    """
    if entry.get("failures"):
        failed = ", ".join(f"{one['arm']} seed {one['seed']}" for one in entry["failures"])
        raise UserError("record", f"a run with failures ({failed})", "a run in which every arm and seed has an outcome")
    if entry.get("partial") or entry.get("size") == "smoke":
        raise UserError(
            "record",
            "a part of the experiment (smoke size, or some arms or seeds)",
            "all arms and seeds, size full",
        )
    document = read(family, slug, root)
    if _picture_bytes(entry) > PICTURE_BYTES:
        raise UserError("pictures", f"{_picture_bytes(entry)} bytes", f"at most {PICTURE_BYTES} per entry")
    kept = {key: value for key, value in entry.items() if key not in ("partial", "failures")}
    document["entries"][name] = _shorten(kept)
    path = ledger_path(family, slug, root)
    validate(document, str(path))
    write_aside(path, _text(document))
    return path


@dataclass(frozen=True)
class Difference:
    """One number of a run beside what the ledger holds of the same arm, seed and metric; NaN where one lacks it."""

    arm: str
    seed: str
    metric: str
    found: float
    recorded: float

    @property
    def relative(self) -> float:
        """Of the larger of the two; infinite where one is no number."""
        if self.found == self.recorded:
            return 0.0
        ratio = abs(self.found - self.recorded) / max(abs(self.found), abs(self.recorded))
        return ratio if math.isfinite(ratio) else math.inf

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed} {self.metric}: {self.found:.8g}, recorded {self.recorded:.8g}"


def compare(entry: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[Difference]:
    """Every metric of every outcome of ``entry`` beside the recorded one, the largest difference first.

    Costs are left out: no two runs take the same time.
    """
    pairs = []
    for arm, given in entry["arms"].items():
        before = recorded["arms"].get(arm, {"outcomes": {}})["outcomes"]
        for seed, outcome in given["outcomes"].items():
            now, then = outcome["metrics"], before.get(str(seed), {"metrics": {}})["metrics"]
            for metric in dict.fromkeys((*now, *then)):
                pairs.append(Difference(arm, str(seed), metric, now.get(metric, math.nan), then.get(metric, math.nan)))
    return sorted(pairs, key=lambda pair: -pair.relative)


def _text(document: Mapping[str, Any]) -> str:
    """JSON that a person can compare line by line: a key a line, and a list of numbers on one."""
    indented = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\n\s+([-+\d.eE,\s]+?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", indented) + "\n"


def validate(document: Any, where: str = "ledger") -> None:
    """Raise :class:`UserError` with the place and the key of the first thing that is wrong."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        given = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise UserError(f"{where}: schema", given, str(SCHEMA))
    if not isinstance(document.get("slug"), str) or not isinstance(document.get("entries"), dict):
        raise UserError(f"{where}: slug, entries", sorted(document), "a slug and a mapping of entries")
    for name, entry in document["entries"].items():
        place = f"{where}: entries.{name}"
        for key, kind in _ENTRY.items():
            if not isinstance(entry.get(key), kind):
                raise UserError(f"{place}.{key}", entry.get(key), getattr(kind, "__name__", "a number"))
        for arm, record in entry["arms"].items():
            _validate_arm(f"{place}.arms.{arm}", record, [str(seed) for seed in entry["seeds"]])
        for index, claim in enumerate(entry["claims"]):
            if claim.get("verdict") not in VERDICTS:
                raise UserError(f"{place}.claims.{index}.verdict", claim.get("verdict"), VERDICTS)
            if claim.get("kind") == "comparison":
                for side in ("arm", "over"):
                    if claim.get(side) not in entry["arms"]:
                        raise UserError(f"{place}.claims.{index}.{side}", claim.get(side), entry["arms"])
            elif claim.get("kind") != "exact":
                raise UserError(f"{place}.claims.{index}.kind", claim.get("kind"), ("comparison", "exact"))


def _validate_arm(place: str, record: Mapping[str, Any], seeds: list[str]) -> None:
    if record.get("role") not in ROLES:
        raise UserError(f"{place}.role", record.get("role"), ROLES)
    if sorted(record.get("outcomes", {})) != sorted(seeds):
        raise UserError(f"{place}.outcomes", sorted(record.get("outcomes", {})), f"the seeds {', '.join(seeds)}")
    for seed, outcome in record["outcomes"].items():
        if not isinstance(outcome.get("metrics"), dict):
            raise UserError(f"{place}.outcomes.{seed}.metrics", outcome.get("metrics"), "a mapping of numbers")


def _picture_bytes(entry: Mapping[str, Any]) -> int:
    runs = [run for arm in entry["arms"].values() for run in arm["outcomes"].values()]
    return sum(len(uri) for run in runs for uri in run.get("pictures", {}).values())


def environment(accelerator: str = "") -> dict[str, Any]:
    """Versions, machine (no host names) and the state of the source: what a result was made with."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "limbeck" not in versions:
        versions["limbeck"] = "source tree, not installed"
    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if accelerator:
        machine["accelerator"] = accelerator
    commit, dirty = _source_state(Path(__file__).resolve().parents[1])
    return {"versions": versions, "machine": machine, "commit": commit, "dirty": dirty}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _source_state(package: Path) -> tuple[str, bool]:
    """The commit of the checkout that holds the package, and whether its sources differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository, whose commit says nothing about it.
        if not git("ls-files", "--", "__init__.py"):
            return "", True
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _shorten(value: Any, inside_curve: bool = False) -> Any:
    """Curves keep six significant digits: they are drawn, and a ledger is read by people and by git."""
    if isinstance(value, Mapping):
        return {key: _shorten(item, inside_curve or key == "curves") for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item, inside_curve) for item in value]
    return float(f"{value:.6g}") if inside_curve and isinstance(value, float) else value
