"""Losses, taps and signals work where nothing but torch, numpy and the standard library is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import limbeck

PROGRAM = """
import importlib.abc, json, sys
allowed = set(json.loads(sys.argv[1]))

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"refused {name}", name=name)

sys.meta_path.insert(0, Refuse())
blocked = []
for name in ("scipy", "lightning", "transformers"):
    try:
        __import__(name)
    except ImportError:
        blocked.append(name)
import torch
import limbeck.losses, limbeck.signals, limbeck.taps
logits = torch.randn(4, 5, requires_grad=True)
limbeck.losses.forward_kl(logits, torch.randn(4, 5), temperature=2.0).backward()
limbeck.losses.sinkhorn_distance(logits, torch.randn(4, 5)).backward()
print(json.dumps({"blocked": blocked, "tops": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def needed_by(package: str) -> set[str]:
    """Distributions that ``package`` requires without extras, and what those require."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [re.match(r"[\w.-]+", line).group() for line in lines if "extra ==" not in line]
    return found


def test_import_and_use_with_everything_else_refused():
    needed = needed_by("torch") | {"numpy"}
    assert not needed & {"scipy", "lightning", "transformers"}
    modules = {
        module
        for module, owners in metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in needed for owner in owners)
    }
    allowed = modules | set(sys.stdlib_module_names) | {"limbeck"}
    source = str(Path(limbeck.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sorted(allowed))],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["blocked"] == ["scipy", "lightning", "transformers"]
    assert {"torch", "limbeck"} <= set(report["tops"])
