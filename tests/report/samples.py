"""Results as a run gives them, small and whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from limbeck.experiment import statistics
from limbeck.experiment.base import Claim, Exact, Outcome

ARMS = {
    "none": ("cross-entropy on the labels", "none", 0.80),
    "kd": ("plain KD <at temperature 4>", "rival", 0.84),
    "ours": ("the method", "method", 0.86),
    "ours-uniform": ("uniform weights", "ablation", 0.82),
    "random": ("a teacher that was never trained", "control", 0.79),
}
CLAIMS = (
    Claim("Ours beats training alone", "ours", over="none", metric="accuracy", margin=0.01, source="[paper] table 1"),
    Claim("Ours beats KD by five points", "ours", over="kd", metric="accuracy", margin=0.05),
    Claim("Ours is as calibrated as KD", "ours", over="kd", metric="ece", better="lower", margin=-0.0005),
    Claim("The control is behind the ablation", "ours-uniform", over="random", metric="accuracy"),
)
CARD: dict[str, Any] = {
    "slug": "ours",
    "title": "Ours: a method & its <title>",
    "year": 2025,
    "venue": "A Conference 2025",
    "family": "classification",
    "idea": "The student learns a ranking.",
    "formula": "L = a < b",
    "paper": "https://example.org/paper.pdf",
    "official_code": "none",
    "limits": ("Nothing was shown for more than ten classes.",),
    "released_versus_paper": ("The released loss is summed.",),
    "findings": {"Ours beats KD by five points": "Ten classes leave no room for it."},
}


def entry() -> dict[str, Any]:
    """A ledger entry; the control diverged with seed 1."""
    arms: dict[str, Any] = {}
    for position, (name, (description, role, mean)) in enumerate(ARMS.items()):
        outcomes = {}
        for seed in range(5):
            noise = np.random.default_rng([seed, position]).standard_normal(2)
            accuracy = mean + 0.01 * np.random.default_rng(seed).standard_normal() + 0.002 * noise[0]
            if (name, seed) == ("random", 1):
                accuracy = math.nan
            curve = [accuracy - 0.2 / (epoch + 1) for epoch in range(5)]
            bins = {"confidence": [0.5, 0.9], "accuracy": [0.45, 0.85], "share": [0.3, 0.7]}
            notes = {"reliability": bins} if name in ("none", "ours") else {}
            metrics = {"accuracy": accuracy, "ece": 0.03 + 0.005 * noise[1]}
            outcomes[str(seed)] = Outcome(
                metrics, {"validation_accuracy": curve}, {"seconds": 12.0 + seed}, notes
            ).to_json()
        summary = {
            metric: statistics.summary([one["metrics"][metric] for one in outcomes.values()])
            for metric in ("accuracy", "ece")
        }
        arms[name] = {"description": description, "role": role, "outcomes": outcomes, "summary": summary}
    by_arm = {name: {int(seed): one["metrics"] for seed, one in arm["outcomes"].items()} for name, arm in arms.items()}
    claims = [statistics.decide(claim, by_arm) for claim in CLAIMS]
    exact = Exact("One-hot weights give cross-entropy", check=lambda: 0.0, tolerance=1e-6)
    check = {"name": "teacher accuracy", "value": 0.88, "bound": "0.3 to 0.99", "passed": True}
    return {
        "title": "Few labels",
        "size": "full",
        "testbed": "digits:few_labels",
        "metric": "accuracy",
        "seeds": list(range(5)),
        "gate": {"passed": True, "checks": [check]},
        "reference": {"teacher": {"accuracy": 0.88, "ece": 0.04}},
        "data": {"digits.csv": "ab" * 32},
        "arms": arms,
        "claims": [*claims, statistics.decide_exact(exact, 3e-8)],
        "statistics": statistics.METHOD,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {"processor": "A Processor", "cores": 2, "system": "Linux x86_64"},
        "command": "limbeck run ours --record",
        "started": "2026-11-21T09:00:00+00:00",
        "seconds": 312.0,
        "commit": "0123456789abcdef",
        "dirty": True,
        "notes": {},
    }


def result() -> dict[str, Any]:
    """What `limbeck distill` ends with."""
    cheap = {"parameters": 15_615_360, "bytes": 62_461_440, "flops": 0.91e9, "latency_p95_ms": 4.1}
    return {
        "title": "MiniLM <6 layers to 2>",
        "task": "embedding",
        "primary_metric": "recall@10",
        "models": {
            "teacher": {
                "recall@10": 0.814,
                "mrr": 0.662,
                "cosine": 1.0,
                "parameters": 22_713_216,
                "bytes": 90_852_864,
                "flops": 2.72e9,
                "latency_p50_ms": 9.31,
                "latency_p95_ms": 11.2,
                "throughput": 163.2,
            },
            "student without distillation": {
                "recall@10": 0.545,
                "mrr": 0.401,
                "cosine": 0.61,
                **cheap,
                "latency_p50_ms": 3.42,
                "throughput": 471.0,
            },
            "student": {
                "recall@10": 0.781,
                "mrr": 0.63,
                "cosine": 0.927,
                **cheap,
                "latency_p50_ms": 3.4,
                "throughput": 478.0,
            },
        },
        "curves": {
            "train/loss": {"x": [1, 10, 20, 30], "y": [0.5, 0.3, 0.2, 0.15]},
            "validation/loss": {"x": [10, 30], "y": [0.35, 0.2]},
            "validation/recall@10": {"x": [10, 30], "y": [0.6, 0.78]},
        },
        "plan": [{"key": "objective", "value": "Cosine(embedding)", "reason": "both sides give 384 dimensions"}],
        "exports": [{"format": "onnx", "parity": 2.4e-7, "file": "student/model.onnx", "bytes": 62_498_211}],
        "manifest": {"seed": 0, "versions": {"torch": "2.13.0"}, "hashes": {"data": "9f31" * 16}},
        "command": "limbeck distill --teacher hf:./minilm --out student/",
        "notes": ["The student starts from layers 0 and 5."],
    }
