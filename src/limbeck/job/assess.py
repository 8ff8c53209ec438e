"""What a network is worth on held-out samples, and what it costs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck import measure
from limbeck.data.chats import Chat
from limbeck.data.split import Split, take
from limbeck.job.language_quality import assess_language
from limbeck.job.plan import Plan, example_inputs
from limbeck.models.references import Network
from limbeck.nn.mode import evaluating
from limbeck.signals import move
from limbeck.taps import Taps


@dataclass
class Assessment:
    """Quality of one network, with the signals it was computed from, and of a classifier how reliable it is.

    ``fidelity`` is filled where signals are too large to be kept: language models are compared batch by batch.
    """

    quality: dict[str, float]
    signals: dict[str, Tensor] = field(default_factory=dict)
    reliability: dict[str, list[float]] = field(default_factory=dict)
    fidelity: dict[str, float] = field(default_factory=dict)


def assess(plan: Plan, network: Network, part: str) -> Assessment:
    """Quality of a network on the ``validation`` or ``test`` part."""
    split: Split = getattr(plan.data.splits, part)
    if plan.language is not None:
        return assess_language(plan, network, part)
    taps = plan.teacher_taps if network is plan.teacher else plan.student_taps
    signals = predict(plan, network, split.input, taps if plan.task == "features" else {})
    quality: dict[str, float] = {}
    reliability: dict[str, list[float]] = {}
    if plan.task == "classification" and split.target is not None:
        quality = measure.classification(signals["logits"], split.target)
        bins = measure.reliability(signals["logits"], split.target, bins=10)
        reliability = {key: [getattr(part, key) for part in bins] for key in ("confidence", "accuracy")}
        reliability["share"] = [part.count / len(split) for part in bins]
    elif plan.task == "regression" and split.target is not None:
        quality = measure.regression(signals["logits"].reshape(split.target.shape), split.target.float())
    elif plan.task == "embedding" and part in (plan.data.pairs or {}):
        queries, documents = (plan.data.pairs or {})[part]
        quality = measure.retrieval(_embed(plan, network, queries), _embed(plan, network, documents))
    return Assessment(quality, signals, reliability)


def predict(plan: Plan, network: Network, inputs: Any, taps: Mapping[str, str]) -> dict[str, Tensor]:
    """Signals of all samples, in their order, on the CPU; batches hold samples of like length."""
    count = len(inputs)
    order = torch.arange(count)
    if plan.data.modality == "text":
        order = text_lengths(inputs).argsort(descending=True, stable=True)
    parts: dict[str, list[Tensor]] = {}
    device = next(network.module.parameters(), torch.empty(0)).device
    reader = Taps(network.module, taps)
    try:
        with evaluating(network.module), torch.inference_mode():
            for index in torch.split(order, 64):
                batch = {"input": move(network.prepare(take(inputs, index)), device), "id": index}
                with reader.capture() as tapped:
                    signals = {**network.forward(network.module, batch), **tapped}
                for name, value in signals.items():
                    if name in ("logits", "embedding"):
                        parts.setdefault(name, []).append(value.float().cpu())
    finally:
        reader.close()
    back = torch.argsort(order)
    return {name: torch.cat(values)[back].clone() for name, values in parts.items()}


def text_lengths(texts: Any) -> Tensor:
    """Letters of every text, or of both texts of every pair."""
    return torch.tensor([len(text) if isinstance(text, (str, Chat)) else sum(map(len, text)) for text in texts])


def _embed(plan: Plan, network: Network, texts: Any) -> Tensor:
    return predict(plan, network, texts, {})["embedding"]


def fidelity(plan: Plan, teacher: Assessment | None, other: Assessment) -> dict[str, float]:
    """How far a network says what the teacher says, on the test samples; nothing where its weights are not here."""
    if plan.language is not None or teacher is None:
        return other.fidelity
    if plan.task == "regression":
        teacher_says, says = teacher.signals["logits"], other.signals["logits"]
        return {"mse_to_teacher": float((teacher_says - says).double().square().mean())}
    if plan.task == "features":
        return {"cka": measure.cka(_flat(teacher.signals["embedding"]), _flat(other.signals["embedding"]))}
    return measure.fidelity_summary(teacher.signals, other.signals)


def _flat(features: Tensor) -> Tensor:
    return features if features.dim() == 2 else features.flatten(1)


def costs(plan: Plan, networks: Mapping[str, Network], seconds: float = 6.0) -> dict[str, dict[str, float]]:
    """Size of every network, and their speed side by side in one run."""
    inputs: Any = plan.data.splits.test.input
    if plan.data.modality == "text":
        # Texts of usual length and longer: the first ones of a file may be its shortest.
        order = text_lengths(inputs).argsort(stable=True)
        chosen: Any = take(inputs, order[len(inputs) // 2 :])
    else:
        chosen = inputs
    single = {name: measure.forward_call(n.module, example_inputs(n, chosen, 1)) for name, n in networks.items()}
    # Whole logits of a language model would fill the memory.
    batch = min(32 if plan.language is None else 4, len(chosen))
    many = {name: measure.forward_call(n.module, example_inputs(n, chosen, batch)) for name, n in networks.items()}
    latency = measure.compare_latency(single, rounds=60, warmup=5, seconds=seconds)
    throughput = measure.compare_throughput(many, batch, rounds=12, warmup=1, seconds=seconds)
    table = {}
    for name, network in networks.items():
        summary = measure.cost_summary(network.module, example_inputs(network, chosen, 1))
        table[name] = {
            **{key: float(value) for key, value in summary.items() if key != "trainable"},
            "latency_p50_ms": latency[name].p50_ms,
            "latency_p95_ms": latency[name].p95_ms,
            "throughput": throughput[name].samples_per_second,
            "throughput_ratio": throughput[name].speedup,
        }
        if plan.language is not None:
            given: Any = example_inputs(network, chosen, batch)
            tokens = float(given["attention_mask"].sum()) / batch
            table[name]["tokens_per_second"] = tokens * throughput[name].samples_per_second
    return table


def machine() -> str:
    """What the times were measured on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
