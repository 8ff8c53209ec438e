"""What a network is worth: quality, fidelity to its teacher, calibration, and what it costs."""

from __future__ import annotations

from limbeck.measure.bm25 import BM25, recall_of_scores
from limbeck.measure.calibration import (
    Calibration,
    ReliabilityBin,
    brier,
    calibration_summary,
    ece_interval,
    expected_calibration_error,
    fit_temperature,
    nll,
    reliability,
)
from limbeck.measure.cost import (
    Throughput,
    Timing,
    compare_latency,
    compare_throughput,
    cost_summary,
    count_flops,
    flops,
    forward_call,
    latency,
    parameters,
    state_bytes,
    token_layers,
)
from limbeck.measure.fidelity import agreement, cka, cosine, fidelity_summary, js, kl, neighbour_overlap
from limbeck.measure.memory import PeakMemory, kept_for_backward, peak_memory, watched_memory
from limbeck.measure.outputs import features_of, logits_of
from limbeck.measure.pairs import pair_quality
from limbeck.measure.probes import linear_probe, neighbour_probe
from limbeck.measure.quality import auc, classification, language_modelling, perplexity, regression, retrieval

__all__ = [
    "BM25",
    "Calibration",
    "PeakMemory",
    "ReliabilityBin",
    "Throughput",
    "Timing",
    "agreement",
    "auc",
    "brier",
    "calibration_summary",
    "cka",
    "classification",
    "compare_latency",
    "compare_throughput",
    "cosine",
    "cost_summary",
    "count_flops",
    "ece_interval",
    "expected_calibration_error",
    "features_of",
    "fidelity_summary",
    "fit_temperature",
    "flops",
    "forward_call",
    "js",
    "kept_for_backward",
    "kl",
    "language_modelling",
    "latency",
    "linear_probe",
    "logits_of",
    "neighbour_overlap",
    "neighbour_probe",
    "nll",
    "pair_quality",
    "parameters",
    "peak_memory",
    "watched_memory",
    "perplexity",
    "recall_of_scores",
    "regression",
    "reliability",
    "retrieval",
    "state_bytes",
    "token_layers",
]
