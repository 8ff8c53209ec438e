"""Every performance claim, one script after the other: ``make bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parent
SCRIPTS = (
    "training_step",
    "cached_training",
    "cached_language_model",
    "cache_frontier",
    "vocabulary_loss",
    "torchdistill_loop",
    "on_policy_step",
)


def main() -> None:
    missed = []
    for name in SCRIPTS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HOME / f"{name}.py")], check=False).returncode:
            missed.append(name)
    if missed:
        sys.exit(f"targets missed in: {', '.join(missed)}")


if __name__ == "__main__":
    main()
