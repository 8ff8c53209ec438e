"""What is known of metrics: how they are called, grouped and compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

GROUPS = ("Quality", "Agreement with the teacher", "Calibration", "Size", "Speed", "Other")
QUALITY, AGREEMENT, CALIBRATION, SIZE, SPEED, OTHER = GROUPS


@dataclass(frozen=True)
class Measure:
    """What is known of a metric: its label, its group, which direction is better and how it is written."""

    name: str
    label: str
    group: str
    better: str
    kind: str

    @property
    def arrow(self) -> str:
        """The direction that is better, for a column head."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")

    @property
    def scale(self) -> float:
        """What a share is multiplied by where it is drawn."""
        return 100.0 if self.kind == "percent" else 1.0

    @property
    def axis(self) -> str:
        """The label with its unit."""
        unit = _UNITS.get(self.kind, "")
        return f"{self.label}, {unit}" if unit else self.label

    @property
    def title(self) -> str:
        """The label at the beginning of a sentence."""
        return self.label[:1].upper() + self.label[1:]


_UNITS = {"percent": "%", "milliseconds": "ms", "seconds": "s", "nats": "nats", "rate": "per second"}
_KNOWN: dict[str, tuple[str, str, str, str]] = {
    "accuracy": ("accuracy", QUALITY, "higher", "percent"),
    "top5": ("top-5 accuracy", QUALITY, "higher", "percent"),
    "macro_f1": ("macro F1", QUALITY, "higher", "percent"),
    "f1": ("F1", QUALITY, "higher", "percent"),
    "mrr": ("MRR", QUALITY, "higher", "number"),
    "r2": ("R²", QUALITY, "higher", "number"),
    "pearson": ("Pearson correlation", QUALITY, "higher", "number"),
    "spearman": ("Spearman correlation", QUALITY, "higher", "number"),
    "mse": ("mean squared error", QUALITY, "lower", "number"),
    "fid": ("feature FID", QUALITY, "lower", "number"),
    "precision": ("precision", QUALITY, "higher", "percent"),
    "recall": ("recall", QUALITY, "higher", "percent"),
    "psnr": ("PSNR, dB", QUALITY, "higher", "number"),
    "mae": ("mean absolute error", QUALITY, "lower", "number"),
    "perplexity": ("perplexity", QUALITY, "lower", "number"),
    "bits_per_byte": ("bits per byte of text", QUALITY, "lower", "number"),
    "coverage": ("coverage", QUALITY, "higher", "percent"),
    "steps_to_success": ("steps to 50% success", QUALITY, "lower", "count"),
    "first_success": ("steps to the first success", QUALITY, "lower", "count"),
    "final_success": ("success at the end", QUALITY, "higher", "percent"),
    "final_return": ("return at the end", QUALITY, "higher", "number"),
    "regret": ("regret", QUALITY, "lower", "number"),
    "loss": ("loss", QUALITY, "lower", "number"),
    "agreement": ("agreement", AGREEMENT, "higher", "percent"),
    "teacher_agreement": ("agreement", AGREEMENT, "higher", "percent"),
    "kl": ("KL(teacher ‖ student)", AGREEMENT, "lower", "nats"),
    "span_gap": ("log-likelihood of a span, difference", AGREEMENT, "lower", "nats"),
    "js": ("Jensen-Shannon divergence", AGREEMENT, "lower", "nats"),
    "cka": ("CKA", AGREEMENT, "higher", "number"),
    "cosine": ("cosine to the teacher", AGREEMENT, "higher", "number"),
    "nll": ("NLL", CALIBRATION, "lower", "nats"),
    "ece": ("ECE", CALIBRATION, "lower", "percent"),
    "brier": ("Brier score", CALIBRATION, "lower", "number"),
    "parameters": ("parameters", SIZE, "lower", "count"),
    "trainable": ("trained parameters", SIZE, "", "count"),
    "trainable_parameters": ("trained parameters", SIZE, "", "count"),
    "bytes": ("size", SIZE, "lower", "bytes"),
    "peak_memory_bytes": ("peak memory", SIZE, "lower", "bytes"),
    "flops": ("FLOPs per sample", SPEED, "lower", "flops"),
    "latency_p50_ms": ("latency p50, batch 1", SPEED, "lower", "milliseconds"),
    "latency_p95_ms": ("latency p95, batch 1", SPEED, "lower", "milliseconds"),
    "latency_p99_ms": ("latency p99, batch 1", SPEED, "lower", "milliseconds"),
    "throughput": ("throughput", SPEED, "higher", "rate"),
    "tokens_per_second": ("tokens read", SPEED, "higher", "rate"),
    "written_per_second": ("tokens written", SPEED, "higher", "rate"),
    "rouge_l": ("ROUGE-L of greedy answers", QUALITY, "higher", "number"),
    "rouge_l_to_teacher": ("ROUGE-L to the teacher's answers", AGREEMENT, "higher", "number"),
    "throughput_ratio": ("throughput, as ratio side by side", SPEED, "", "ratio"),
    "seconds": ("seconds", OTHER, "lower", "seconds"),
    "cpu_seconds": ("processor seconds", OTHER, "lower", "seconds"),
}
# For names that are not in the table: the first pattern that fits, with the label made from the name.
_PATTERNS: tuple[tuple[str, str, str, str], ...] = (
    (
        r"(recall|precision|ndcg|hit|map|mrr)@\d+|ndcg|map|auc|auroc|iou|miou|dice|bleu|rouge.*",
        QUALITY,
        "higher",
        "number",
    ),
    (r"(.*_)?(accuracy|f1|top\d+)(_.*)?", QUALITY, "higher", "percent"),
    (r"(.*_)?agreement(_.*)?|neighbour_overlap.*", AGREEMENT, "higher", "percent"),
    (r"(.*_)?(kl|js)(_.*)?", AGREEMENT, "lower", "nats"),
    (r"(.*_)?fid(_.*)?", QUALITY, "lower", "number"),
    (r"(.*_)?psnr(_.*)?", QUALITY, "higher", "number"),
    (r"speedup(_.*)?", SPEED, "higher", "number"),
    (r"(.*_)?(cosine|cka)(_.*)?", AGREEMENT, "higher", "number"),
    (r"(.*_)?ece(_.*)?", CALIBRATION, "lower", "percent"),
    (r"(.*_)?nll(_.*)?", CALIBRATION, "lower", "nats"),
    (r"(.*_)?brier(_.*)?", CALIBRATION, "lower", "number"),
    (r"(.*_)?parameters", SIZE, "lower", "count"),
    (r"(.*_)?bytes", SIZE, "lower", "bytes"),
    (r"(.*_)?flops", SPEED, "lower", "flops"),
    (r".*_ms", SPEED, "lower", "milliseconds"),
    (r"(.*_)?throughput(_.*)?", SPEED, "higher", "rate"),
    (r"(.*_)?seconds", OTHER, "lower", "seconds"),
    (r"(.*_)?(loss|error|mse|mae|rmse|perplexity)(_.*)?", QUALITY, "lower", "number"),
)


def measure(metric: str) -> Measure:
    """What is known of ``metric``; an unknown one is a plain number without a better direction."""
    if metric in _KNOWN:
        return Measure(metric, *_KNOWN[metric])
    label = metric.replace("_", " ").replace("/", ", ")
    for pattern, group, better, kind in _PATTERNS:
        if re.fullmatch(pattern, metric):
            for written in (
                "ece",
                "nll",
                "kl",
                "js",
                "f1",
                "cka",
                "mse",
                "fid",
                "psnr",
                "mae",
                "auc",
                "iou",
                "ndcg",
                "mrr",
                "flops",
            ):
                label = re.sub(rf"\b{written}\b", "FLOPs" if written == "flops" else written.upper(), label)
            return Measure(metric, label.removesuffix(" ms"), group, better, kind)
    return Measure(metric, label, OTHER, "", "number")


def grouped(metrics: Iterable[str], first: str = "") -> list[tuple[str, list[Measure]]]:
    """Metrics by group, in the order of :data:`GROUPS`; inside one ``first``, the known, then as given."""
    order = {name: position for position, name in enumerate(_KNOWN)} | {first: -1}
    known = sorted((measure(name) for name in dict.fromkeys(metrics)), key=lambda one: order.get(one.name, len(order)))
    return [
        (group, [one for one in known if one.group == group])
        for group in GROUPS
        if any(one.group == group for one in known)
    ]
