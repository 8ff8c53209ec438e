"""Half of SmolLM2's layers on real chats, for 20 minutes of one core each: without distillation, from a cache of the
teacher's log-probabilities, and on the student's own texts.

    python examples/smollm2.py                       # about an hour and a half; what was interrupted goes on
    python examples/smollm2.py --only "on-policy"    # one of them; the ledger is written when all are there

Each is a ``limbeck distill --task causal-lm --teacher hf:DIR --student slice:layers=even:15 --data jsonl:chats.jsonl``
with the options of ``ARMS``. Steps were set by the processor seconds of a step, so that each takes 20 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.data.sharegpt import exchanges
from limbeck.job import distill
from limbeck.job.output import write_text
from limbeck.testbeds.smollm2 import SmolLM2

LEDGER = Path(__file__).parents[1] / "ledger" / "examples" / "smollm2.json"
CHATS = 1600
COMMON = {"task": "causal-lm", "student": "slice:layers=even:15", "batch_size": 8, "max_length": 256, "answers": 32}
ARMS: dict[str, dict[str, Any]] = {
    "no distillation": {"objective": "cross_entropy", "signals": "live", "steps": 235, "baseline": "untrained"},
    "cached": {"signals": "cache", "steps": 225, "baseline": "none"},
    # At first the cut student writes nothing that could be learnt from.
    "on-policy": {"signals": "live", "text": "mix(student=linear(0, 1))", "steps": 100, "baseline": "none"},
}


def main() -> None:
    """Run what is missing, and bring the ledger up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("smollm2"))
    parser.add_argument("--only", choices=ARMS)
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    chats = options.out / "chats.jsonl"
    rows = itertools.islice(exchanges(), CHATS)
    write_text(chats, "".join(json.dumps(row) + "\n" for row in rows))
    arms = {name: ARMS[name] for name in ([options.only] if options.only else ARMS)}
    run(f"hf:{SmolLM2().folder}", f"jsonl:{chats}", options.out, arms, COMMON)
    if all((options.out / name / "result.json").is_file() for name in ARMS):
        write_text(LEDGER, json.dumps(record(options.out, ARMS), indent=1) + "\n")


def run(teacher: str, data: str, out: Path, arms: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]) -> None:
    """A student by every arm, in a folder of its own; those that are there are left, those that were cut go on."""
    for name, settings in arms.items():
        folder = out / name
        if (folder / "result.json").is_file():
            continue
        begun = time.process_time()
        distill(teacher=teacher, data=data, out=folder, **common, **settings, resume=(folder / "config.yaml").is_file())
        write_text(folder / "cpu_seconds.json", json.dumps(time.process_time() - begun))


def record(out: Path, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One table of all students beside the teacher and the student as it was cut."""
    found = {name: json.loads((out / name / "result.json").read_text()) for name in arms}
    first = next(iter(found.values()))
    models = {"teacher": first["models"]["teacher"], "as cut": first["models"]["student without distillation"]}
    models |= {name: result["models"]["student"] for name, result in found.items()}
    kept = ("seconds", "training seconds", "student", "data", "versions", "machine", "commit", "dirty")
    return {
        "title": f"SmolLM2-135M-Instruct to {COMMON['student']}, on {CHATS} chats",
        "primary_metric": first["primary_metric"],
        "models": models,
        "arms": {
            name: {
                "settings": dict(arms[name]),
                "plan": result["plan"],
                "cpu_seconds": json.loads((out / name / "cpu_seconds.json").read_text()),
                "manifest": {key: result["manifest"][key] for key in kept},
            }
            for name, result in found.items()
        },
    }


if __name__ == "__main__":
    main()
