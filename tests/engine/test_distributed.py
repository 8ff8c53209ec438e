from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import fit
from limbeck.engine.fit import choose_strategy
from limbeck.errors import UserError
from tests.engine.distributed_job import CASES, COUNT, run_case
from tests.engine.helpers import distiller, equal, loader, network

ROOT = Path(__file__).parents[2]
JOB = Path(__file__).with_name("distributed_job.py")


def run_job(out: Path, *launcher: str) -> list[dict[str, Any]]:
    """The results of both processes."""
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *launcher, str(JOB), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_job(tmp_path_factory.mktemp("ddp"))


def assert_same_run(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert len(two["lines"]) == len(one["lines"]) == 2 * 5
    for ours, theirs in zip(two["lines"], one["lines"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert len(two["gradients"]) == len(one["gradients"])
    for step in (0, len(one["gradients"]) // 2 - 1, -1):
        ours, theirs = two["gradients"][step], one["gradients"][step]
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_process_with_the_same_global_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    one = run_case(name)
    for rank in ranks:
        assert_same_run(rank[name], one)
    assert any(gradient.abs().max() > 1e-4 for gradient in one["gradients"][0].values())


def test_every_sample_goes_to_one_process(ranks: list[dict[str, Any]]) -> None:
    for kind, count in (("tensor", 48), ("torch", 20)):
        first, second = (rank["shares"][kind] for rank in ranks)
        assert len(first) == len(second) == count // 2
        assert len(set(first + second)) == count


def test_a_program_is_written_once_and_read_by_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["program"]["steps"] == [5] * 4
        assert equal(*rank["program"]["weights"])
    assert equal(ranks[0]["program"]["weights"][0], ranks[1]["program"]["weights"][0])


def test_a_cut_run_of_two_processes_ends_with_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert equal(rank["resumed"]["whole"], rank["resumed"]["again"])
        assert rank["resumed"]["lines"][0] == rank["resumed"]["lines"][1]


def test_ctrl_c_in_one_process_stops_both_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["interrupted"] == (
            "stopped on request at step 3; continue from OUT/stop/last.ckpt, saved at step 3"
        )


def test_torchrun_starts_the_same_run(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    one = run_case("rows")
    for rank in run_job(tmp_path, *launcher):
        assert_same_run(rank["rows"], one)


def test_fsdp_without_a_gpu_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="strategy: given fsdp; allowed: ddp on CPU; fsdp needs GPUs"):
        fit(distiller(network(9)), loader(), epochs=1, strategy="fsdp", devices=2, accelerator="cpu")


def test_ddp_expects_weights_without_a_gradient() -> None:
    for strategy, devices in (("ddp", 1), ("auto", 2), ("auto", "2"), ("auto", [0, 1]), ("auto", "0,1")):
        assert choose_strategy(strategy, "cpu", devices) == "ddp_find_unused_parameters_true"
    for strategy, devices in (("auto", 1), ("auto", "auto"), ("ddp_spawn", 2)):
        assert choose_strategy(strategy, "cpu", devices) == strategy


def test_the_last_batch_is_really_one_that_cannot_be_shared_equally() -> None:
    assert COUNT % 8 == 3
