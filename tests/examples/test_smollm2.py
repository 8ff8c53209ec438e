"""The example on chats runs every arm, goes on where it stopped, and writes one table of them all."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.models.tiny import save_chat_llama
from tests.scripts import load_script


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("examples/smollm2.py")


def test_arms_end_in_one_table(example: ModuleType, tmp_path: Path) -> None:
    animals = [
        f"the {one} {number} {does}" for number in range(20) for one, does in (("cat", "sleeps"), ("dog", "runs"))
    ]
    rows = [{"prompt": f"what does {text}", "completion": text} for text in animals]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = save_chat_llama(tmp_path / "teacher")
    less = {
        "student": "slice:layers=even:2",
        "batch_size": 4,
        "answers": 2,
        "max_length": 64,
        "decoding": {"length": 4},
        "quiet": True,
    }
    common = {**example.COMMON, **less}
    arms = {name: {**settings, "steps": 3} for name, settings in example.ARMS.items()}
    given = (f"hf:{teacher}", f"jsonl:{tmp_path / 'chats.jsonl'}", tmp_path / "out", arms, common)
    example.run(*given)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}
    example.run(*given)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished arm was run again"

    found = example.record(tmp_path / "out", arms)
    assert list(found["models"]) == ["teacher", "as cut", *example.ARMS]
    assert {"perplexity", "kl", "agreement", "rouge_l", "tokens_per_second", "bytes"} <= set(found["models"]["cached"])
    for arm in found["arms"].values():
        assert arm["manifest"]["training seconds"] > 0
    (reason,) = [line["reason"] for line in found["arms"]["cached"]["plan"] if line["key"] == "steps"]
    assert reason.startswith("3, as given")


def test_the_ledger_holds_what_the_example_would_run(example: ModuleType) -> None:
    ledger = json.loads(example.LEDGER.read_text())
    assert {name: arm["settings"] for name, arm in ledger["arms"].items()} == example.ARMS
