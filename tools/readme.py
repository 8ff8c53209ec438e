"""Writes the numbers of README.md and docs/language.md, and the picture, from the ledger.

python tools/readme.py                          bring the pages and docs/demo.svg in line with the ledger
python tools/readme.py --record demo/result.json   take a finished demo into the ledger first
python tools/readme.py --check                  fail if a page is stale
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from limbeck.report import plots
from limbeck.report.measures import measure
from limbeck.report.tables import against_teacher, format_value
from limbeck.systems import registry

ROOT = Path(__file__).resolve().parents[1]
README, LANGUAGE, PICTURE = ROOT / "README.md", ROOT / "docs" / "language.md", ROOT / "docs" / "demo.svg"
EXAMPLES = ROOT / "ledger" / "examples"
DEMO = EXAMPLES / "demo.json"
BENCHMARKS = {
    "training_step": "training step against a hand-written PyTorch loop",
    "torchdistill_loop": "training step against torchdistill's own loop",
    "cached_training": "training from the cache against training without a teacher",
    "cached_language_model": "step of a language model (half of SmolLM2) from the cache against a live teacher",
    "cache_frontier": "bytes per token of a cached language model (SmolLM2, 51,000 tokens) and what they cost in KL",
    "on_policy_step": "an on-policy step of a language model against TRL's GKD trainer",
    "vocabulary_loss": "chunked vocabulary loss against the plain one, vocabularies of 131,072 and 49,152",
}
SPOKEN = ("perplexity", "kl", "agreement", "rouge_l", "rouge_l_to_teacher", "tokens_per_second", "parameters", "bytes")
SHOWN = ("recall@10", "mrr", "cosine", "parameters", "bytes", "latency_p50_ms", "throughput_ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="result.json of a finished demo")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.record:
        record(json.loads(options.record.read_text()))
    demo = json.loads(DEMO.read_text())
    smollm2, trials = (json.loads((EXAMPLES / f"{name}.json").read_text()) for name in ("smollm2", "smollm2_trials"))
    parts = {
        README: {"demo": demo_lines(demo), "systems": systems_lines(), "benchmarks": benchmark_lines()},
        LANGUAGE: {"smollm2": smollm2_lines(smollm2), "trials": trial_lines(trials)},
    }
    texts = {page: filled(page.read_text(), inner) for page, inner in parts.items()}
    picture = plots.quality_latency("demo", demo["models"], demo["primary_metric"])
    if options.check:
        stale = [page.name for page, text in texts.items() if page.read_text() != text]
        if stale:
            sys.exit(f"{', '.join(stale)}: stale, run tools/readme.py")
        return
    for page, text in texts.items():
        page.write_text(text)
    PICTURE.write_text(picture.wide if picture is not None else "")


def record(result: dict[str, Any]) -> None:
    """Keep of a demo what the README and a reader of the ledger need."""
    kept = {key: result[key] for key in ("title", "task", "primary_metric", "models", "plan", "manifest", "command")}
    wanted = ("format", "max_abs_difference", "tolerance", "bytes")
    kept["exports"] = [{key: export[key] for key in wanted} for export in result["exports"]]
    DEMO.parent.mkdir(parents=True, exist_ok=True)
    DEMO.write_text(json.dumps(kept, indent=1) + "\n")


def demo_lines(demo: dict[str, Any]) -> list[str]:
    """The table of the demo, and its picture."""
    models = demo["models"]
    lines = ["| all-MiniLM-L6 on code search | " + " | ".join(models) + " | |", "|---" * (len(models) + 2) + "|"]
    for name in SHOWN:
        cells = " | ".join(format_value(name, values.get(name)) for values in models.values())
        ratio = against_teacher(name, models["student"].get(name), models["teacher"].get(name))
        lines.append(f"| {measure(name).label} | {cells} | {ratio} |")
    machine, versions = demo["manifest"]["machine"], demo["manifest"]["versions"]
    difference = max(export["max_abs_difference"] for export in demo["exports"])
    minutes = demo["manifest"]["seconds"] / 60
    return [
        *lines, "",
        "Two of six layers (without distillation: as cut, untrained), trained on docstrings and functions of the "
        "Python sources on the machine; all of it in "
        f"{minutes:.1f} minutes on {machine['cores']} cores ({machine['processor']}, torch {versions['torch']}); "
        f"the ONNX file differs by at most {difference:.0e}.", "", "![Quality against latency](docs/demo.svg)",
    ]  # fmt: skip


def smollm2_lines(example: dict[str, Any]) -> list[str]:
    """Teacher, cut student and the students of every way to train it."""
    models, arms = example["models"], example["arms"]
    rows = {measure(name).label: [format_value(name, one.get(name)) for one in models.values()] for name in SPOKEN}
    trained = [arms.get(name) for name in models]
    rows["optimiser steps"] = [str(arm["settings"]["steps"]) if arm else "–" for arm in trained]
    minutes = [arm["manifest"]["training seconds"] / 60 if arm else None for arm in trained]
    rows["minutes of training"] = ["–" if value is None else f"{value:.0f}" for value in minutes]
    return table_lines(["", *models], [[label, *cells] for label, cells in rows.items()])


def trial_lines(example: dict[str, Any]) -> list[str]:
    """What went wrong on purpose, and what was seen."""
    seen = {
        name: "; ".join(f"{key}: {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in one.items())
        for name, one in example["trials"].items()
    }
    return table_lines(["tried", "seen"], [[name, text] for name, text in seen.items()])


def table_lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *[f"| {' | '.join(row)} |" for row in rows]]


def systems_lines() -> list[str]:
    """One row per system, with how many of its claims came out how."""
    verdicts = ("reproduced", "not reproduced", "inconclusive")
    lines = [f"| system | paper | {' | '.join(verdicts)} |", "|---|---|---|---|---|"]
    for card in registry.systems():
        counts = registry.verdicts(card.slug).values()
        sums = [sum(entry.get(verdict, 0) for entry in counts) for verdict in verdicts]
        page = (card.folder / "README.md").relative_to(ROOT)
        shown = [str(count) for count in sums] if counts else ["not recorded yet", "", ""]
        note = f"; not yet: {', '.join(card.unrecorded)}" if counts and card.unrecorded else ""
        lines.append(f"| [{card.slug}]({page}) | {card.title} ({card.year}){note} | {' | '.join(shown)} |")
    return lines


def benchmark_lines() -> list[str]:
    """One row per benchmark: its targets met, and each one missed with what was measured."""
    lines = ["| benchmark (two CPU cores, pairs in one run) | targets met | missed |", "|---|---|---|"]
    for name, title in BENCHMARKS.items():
        checks = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["checks"]
        missed = [f"{one['text']}: {one['value']:.2f}, target {bound(one)}" for one in checks if not one["passed"]]
        cells = f"{len(checks) - len(missed)} of {len(checks)} | {'; '.join(missed)}"
        lines.append(f"| [{title}](benchmarks/results/{name}.json) | {cells} |")
    return lines


def bound(check: dict[str, Any]) -> str:
    """The target of one check in words."""
    return f"at most {check['at_most']:.2f}" if "at_most" in check else f"at least {check['at_least']:.2f}"


def filled(text: str, parts: dict[str, list[str]]) -> str:
    """The text with what stands between each pair of markers replaced."""
    for name, lines in parts.items():
        pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        inner = "\n".join(lines) + "\n"
        text = pattern.sub(lambda found, inner=inner: found[1] + inner + found[2], text)
    return text


if __name__ == "__main__":
    main()
