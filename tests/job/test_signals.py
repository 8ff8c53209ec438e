"""``limbeck cache`` as processes of the system see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.cache import CacheReader, Manifest
from limbeck.cli import main

ROOT = Path(__file__).parents[2]
ROWS = 800


def started(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    # Whoever runs tests in the background leaves them deaf to Ctrl-C, and their children too.
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    begin = f"{heard}; from limbeck.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", begin, *words], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def gone(group: int) -> bool:
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_ctrl_c_ends_all_writers_and_the_same_command_goes_on(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "texts.parquet", tmp_path / "cache"
    pq.write_table(pa.table({"text": [f"the cat number {number} sleeps" for number in range(ROWS)]}), table)
    words = ["cache", "--task", "causal-lm", "--teacher", f"hf:{chat_model}", "--data", f"parquet:{table}"]
    words += ["--batch-size", "1", "--codec", "topk:8", "--writers", "2", "--out", str(out)]
    first = started(words)
    until = time.monotonic() + 400
    while len(list(out.glob("part-*"))) < 2:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=200)
    assert first.returncode == 130, said
    assert "limbeck: interrupted" in said
    assert "Traceback" not in said
    assert gone(first.pid), "no process is left"
    parts = sorted(path for path in out.glob("part-*") if path.is_dir())
    kept = {shard.sha256: shard.rows for part in parts for shard in Manifest.load(part).shards}
    done = sum(kept.values())
    assert 0 < done < 0.7 * ROWS

    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == len(CacheReader(out)) > done
    assert set(kept) <= {shard.sha256 for shard in Manifest.load(out).shards}, "nothing is asked twice"
