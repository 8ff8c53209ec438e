from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from limbeck.engine import Distiller, History, Interrupted, PeerDistiller, fit
from limbeck.errors import LimbeckError, UserError
from limbeck.schedules import Cosine
from limbeck.sources import EMA, Average, Live, Snapshot
from tests.engine.helpers import (
    BATCHES,
    INPUT,
    TARGET,
    Cut,
    Die,
    accuracy,
    distiller,
    equal,
    loader,
    network,
    objective,
    states,
)

EPOCHS = 3
SOURCES: dict[str, Any] = {
    "live": lambda student: Live(network(9)),
    "ema": lambda student: EMA(student, Cosine(0.5, 1.0), steps=EPOCHS * BATCHES),
    "ema by epoch": lambda student: EMA(student, 0.7, every="epoch"),
    "snapshot": lambda student: Snapshot(student),
    "average": lambda student: Average([Live(network(9)), Snapshot(student), EMA(student, 0.9)]),
}


def run(module: Any, out: Path | None = None, *cut: Callback, resume: bool = False, **options: Any) -> History:
    settings: dict[str, Any] = {"checkpoint_seconds": 0.0, "log_every": 1, "validate": accuracy, "accelerator": "cpu"}
    settings |= {"epochs": EPOCHS, "seed": 5} | options
    return fit(module, settings.pop("loader", loader()), out=out, callbacks=cut, resume=resume, **settings)


def same_history(one: History, other: History) -> bool:
    return (one.lines, one.steps, one.best_epoch) == (other.lines, other.steps, other.best_epoch)


@pytest.mark.parametrize(
    ("source", "hook"),
    [(source, "on_train_batch_start") for source in SOURCES]
    + [("average", "on_train_batch_end"), ("ema by epoch", "on_train_batch_end"), ("average", "on_train_epoch_end")],
)
def test_a_run_that_was_cut_ends_with_the_same_bits(source: str, hook: str, tmp_path: Path) -> None:
    whole = distiller(SOURCES[source])
    history = run(whole)
    for step in (1, 4, 6) if hook != "on_train_epoch_end" else (4, 12):
        out = tmp_path / str(step)
        with pytest.raises(Cut):
            run(distiller(SOURCES[source]), out, Die(step, hook))
        again = distiller(SOURCES[source])
        assert same_history(run(again, out, resume=True), history), step
        assert equal(states(again), states(whole)), step
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert lines == history.lines


@pytest.mark.parametrize("step", [3, 4, 5, 8])
def test_a_run_of_steps_may_be_cut_anywhere_between_two_epochs_too(step: int, tmp_path: Path) -> None:
    whole, again = distiller(SOURCES["live"]), distiller(SOURCES["live"])
    history = run(whole, epochs=None, steps=10)
    with pytest.raises(Cut):
        run(distiller(SOURCES["live"]), tmp_path, Die(step, "on_train_batch_start"), epochs=None, steps=10)
    assert same_history(history, run(again, tmp_path, resume=True, epochs=None, steps=10))
    assert equal(states(whole), states(again))


@pytest.mark.parametrize(
    "options", [{"steps": 7, "epochs": None}, {"accumulate_grad_batches": 2}, {"loader": "one whose transform draws"}]
)
def test_other_lengths_and_loaders_resume_too(options: dict[str, Any], tmp_path: Path) -> None:
    def noisy(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "input": batch["input"] + 0.1 * torch.randn(batch["input"].shape)}

    def settings() -> dict[str, Any]:
        return {**options, "loader": loader(transform=noisy)} if "loader" in options else options

    whole = distiller(SOURCES["ema"])
    history = run(whole, **settings())
    for step in (1, 3, 5):
        out = tmp_path / str(step)
        with pytest.raises(Cut):
            run(distiller(SOURCES["ema"]), out, Die(step), **settings())
        again = distiller(SOURCES["ema"])
        assert same_history(run(again, out, resume=True, **settings()), history)
        assert equal(states(again), states(whole))


def test_cut_twice_and_cut_before_the_first_checkpoint(tmp_path: Path) -> None:
    whole = distiller(SOURCES["ema"])
    run(whole)
    with pytest.raises(Cut):
        run(distiller(SOURCES["ema"]), tmp_path, Die(0))
    assert not (tmp_path / "last.ckpt").exists()
    for step in (3, 9):
        with pytest.raises(Cut):
            run(distiller(SOURCES["ema"]), tmp_path, Die(step), resume=True)
    again = distiller(SOURCES["ema"])
    run(again, tmp_path, resume=True)
    assert equal(states(again), states(whole))


@pytest.mark.parametrize("step", [3, 8, 12])
def test_the_best_epoch_is_kept_through_a_cut(step: int, tmp_path: Path) -> None:
    def falling(module: Any) -> dict[str, float]:
        return {"score": [0.2, 0.9, 0.4][module.current_epoch]}

    options: dict[str, Any] = {"validate": falling, "select": "score"}
    whole = distiller(SOURCES["live"])
    history = run(whole, **options)
    assert history.best_epoch == 2
    with pytest.raises(Cut):
        run(distiller(SOURCES["live"]), tmp_path, Die(step, "on_train_batch_end" if step < 12 else "on_train_end"),
            **options)  # fmt: skip
    again = distiller(SOURCES["live"])
    assert same_history(run(again, tmp_path, resume=True, **options), history)
    assert equal(again.state_dict(), whole.state_dict())
    # Resuming what is finished gives it again.
    third = distiller(SOURCES["live"])
    assert same_history(run(third, tmp_path, resume=True, **options), history)
    assert equal(third.state_dict(), whole.state_dict())


@pytest.mark.parametrize("step", [2, 3, 6])
def test_validation_inside_an_epoch_picks_the_best_step_through_a_cut(step: int, tmp_path: Path) -> None:
    def best_at_three(module: Any) -> dict[str, float]:
        return {"score": -abs(module.steps_done - 3.0)}

    options: dict[str, Any] = {"validate": best_at_three, "validate_every": 3, "select": "score"}
    whole = distiller(SOURCES["live"])
    history = run(whole, **options)
    assert [line["step"] for line in history.lines if "validation/score" in line] == [3, 4, 6, 8, 9, 12]
    at_three = distiller(SOURCES["live"])
    with pytest.raises(Cut):
        run(at_three, None, Die(3, "on_train_batch_start"))
    weights = (one.student.state_dict() for one in (whole, at_three))
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in weights), strict=True))
    with pytest.raises(Cut):
        run(distiller(SOURCES["live"]), tmp_path, Die(step, "on_train_batch_start"), **options)
    resumed = distiller(SOURCES["live"])
    assert same_history(run(resumed, tmp_path, resume=True, **options), history)
    assert equal(states(whole), states(resumed))


def test_every_judge_sees_every_validation_and_no_step_is_validated_twice() -> None:
    class Seen(Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def look(self, values: dict[str, float], epoch: int, pl_module: Any) -> None:
            self.steps.append(pl_module.steps_done)

    seen = Seen()
    run(distiller(SOURCES["live"]), None, seen, validate_every=1, accumulate_grad_batches=2)
    assert seen.steps == [1, 2, 3, 4, 5, 6]


def test_selection_survives_nan_and_names_what_is_validated() -> None:
    scores = {"score": [float("nan"), 0.3, 0.1]}
    options: dict[str, Any] = {"validate": lambda m: {"score": scores["score"][m.current_epoch]}, "select": "score"}
    assert run(distiller(SOURCES["live"]), **options).best_epoch == 2
    assert run(distiller(SOURCES["live"]), select_higher=False, **options).best_epoch == 3
    with pytest.raises(UserError, match="select: given acuracy; allowed: accuracy"):
        run(distiller(SOURCES["live"]), select="acuracy")


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_peers_that_were_cut_end_with_the_same_bits(update: str, tmp_path: Path) -> None:
    def peers() -> PeerDistiller:
        networks = {"student": network(1), "teacher": network(2, width=24)}
        return PeerDistiller(networks, {"student": objective(), "teacher": objective()}, update=update)

    whole = peers()
    history = run(whole)
    assert history.steps == EPOCHS * BATCHES
    for step in (1, 4, 6):
        with pytest.raises(Cut):
            run(peers(), tmp_path / str(step), Die(step))
        again = peers()
        assert same_history(run(again, tmp_path / str(step), resume=True), history)
        assert equal(again.state_dict(), whole.state_dict())


class Rows(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return len(INPUT)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = 0.1 * torch.randn(8)
        return {"input": INPUT[index] + noise, "target": TARGET[index], "id": index}


def test_a_torch_loader_resumes_at_the_epoch_with_the_same_bits(tmp_path: Path) -> None:
    def batches() -> Any:
        return DataLoader(Rows(), batch_size=16, shuffle=True)

    whole = distiller(SOURCES["ema"])
    history = run(whole, loader=batches())
    for step in (2, 4, 7):
        out = tmp_path / str(step)
        with pytest.raises(Cut):
            run(distiller(SOURCES["ema"]), out, Die(step), loader=batches())
        assert (out / "last.ckpt").exists() is (step >= BATCHES)
        again = distiller(SOURCES["ema"])
        assert same_history(run(again, out, resume=True, loader=batches()), history)
        assert equal(states(again), states(whole))


def test_a_second_training_with_the_same_loader_is_the_same_training() -> None:
    one, two, batches = distiller(SOURCES["live"]), distiller(SOURCES["live"]), loader()
    run(one, loader=batches)
    run(two, loader=batches)
    assert equal(one.state_dict(), two.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": lambda student: Live(network(8))}, "teacher: given another teacher than the checkpoint's"),
        ({"teacher": lambda student: EMA(student)}, "teacher: given another teacher than the checkpoint's"),
        ({"loader": lambda: loader(seed=4)}, "loader seed: given 4; allowed: 3"),
    ],
)
def test_resuming_something_else_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run(distiller(SOURCES["live"]), tmp_path, Die(3))
    module = distiller(change.get("teacher", SOURCES["live"]))
    with pytest.raises(UserError, match=message):
        run(module, tmp_path, resume=True, loader=change.get("loader", loader)())


def test_wrong_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    module = distiller(SOURCES["live"])
    for options in ({"epochs": None}, {"epochs": 1, "steps": 1}):
        with pytest.raises(UserError, match="exactly one of epochs and steps"):
            run(module, **options)
    with pytest.raises(UserError, match="epochs: given 0; allowed: 1 or more"):
        run(module, epochs=0)
    with pytest.raises(UserError, match="resume: given no output folder"):
        run(module, resume=True)
    with pytest.raises(UserError, match="select: given accuracy; allowed: a validate function"):
        run(module, validate=None, select="accuracy")
    with pytest.raises(UserError, match="train: given generator; allowed: a loader that begins anew"):
        run(module, loader=(batch for batch in loader()))
    with pytest.raises(UserError, match="train: given a loader without batches"):
        run(module, loader=[])
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="resume: given .*this file is damaged"):
        run(module, tmp_path, resume=True)


def test_a_new_run_does_not_leave_an_old_checkpoint_to_be_resumed(tmp_path: Path) -> None:
    run(distiller(SOURCES["ema"]), tmp_path)
    with pytest.raises(Cut):
        run(distiller(SOURCES["live"]), tmp_path, Die(0))
    assert not (tmp_path / "last.ckpt").exists()


class Interrupt(Callback):
    """Presses Ctrl-C in the middle of things."""

    def __init__(self, step: int, hook: str, times: int = 1) -> None:
        self.step, self.times = step, times
        setattr(self, hook, self._press)

    def _press(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if pl_module.steps_done == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("step", "hook", "stopped"),
    [(2, "on_train_batch_start", 3), (3, "on_train_batch_start", 4), (4, "on_train_epoch_end", 4),
     (4, "on_train_batch_end", 4), (12, "on_train_epoch_end", 12)],
)  # fmt: skip
def test_ctrl_c_saves_and_a_later_run_goes_on(step: int, hook: str, stopped: int, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    whole = distiller(SOURCES["average"])
    history = run(whole)
    message = rf"stopped on request at step {stopped}; continue from .*last.ckpt, saved at step {stopped}"
    with pytest.raises(Interrupted, match=message):
        run(distiller(SOURCES["average"]), tmp_path, Interrupt(step, hook), checkpoint_seconds=1e9)
    assert signal.getsignal(signal.SIGINT) is handler
    again = distiller(SOURCES["average"])
    assert same_history(run(again, tmp_path, resume=True), history)
    assert equal(states(again), states(whole))
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_without_a_place_to_save_says_so(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="nothing was saved: no output folder"):
        run(distiller(SOURCES["live"]), None, Interrupt(2, "on_train_batch_start"))
    torch_loader = DataLoader(Rows(), batch_size=16)
    with pytest.raises(Interrupted, match="nothing was saved: no epoch was complete"):
        run(distiller(SOURCES["live"]), tmp_path, Interrupt(2, "on_train_batch_start"), loader=torch_loader)
    with pytest.raises(Interrupted, match="at step 7; continue from .*saved at step 4"):
        run(distiller(SOURCES["live"]), tmp_path, Interrupt(6, "on_train_batch_start"), loader=torch_loader)


def test_after_an_error_ctrl_c_is_the_shell_s_again(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cut):
        run(distiller(SOURCES["live"]), tmp_path, Die(2))
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SystemExit):
        run(distiller(SOURCES["live"]), tmp_path, Interrupt(2, "on_train_batch_start", times=2))
    signal.signal(signal.SIGINT, handler)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from limbeck.errors import LimbeckError
from tests.engine.test_resume import SOURCES, run
from tests.engine.helpers import distiller, states

class Slow(Callback):
    def on_train_batch_start(self, trainer, pl_module, *args):
        if pl_module.steps_done >= 5:
            Path(sys.argv[1], "running").touch()
            time.sleep(0.2)

if __name__ == "__main__":
    module = distiller(SOURCES["average"])
    try:
        run(module, Path(sys.argv[1]), Slow(), resume=len(sys.argv) > 2)
    except LimbeckError as error:
        print(error, file=sys.stderr)
        sys.exit(130)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_loses_nothing_that_was_saved(sign: signal.Signals, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if sign == signal.SIGINT:
        assert process.returncode == 130, errors
        assert b"continue from" in errors.splitlines()[-1]
    else:
        assert process.returncode == -signal.SIGKILL, errors
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["limbeck"]["steps_done"]
    assert saved >= 5
    whole, again = distiller(SOURCES["average"]), distiller(SOURCES["average"])
    history = run(whole)
    assert same_history(run(again, tmp_path, resume=True), history)
    assert equal(states(again), states(whole))


def test_a_full_disk_gives_one_clear_error_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if pl_module.steps_done == 6:
                size = (tmp_path / "last.ckpt").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        with pytest.raises(LimbeckError, match=r"cannot write .*last.ckpt: .*; what was there before is kept"):
            run(distiller(SOURCES["ema"]), tmp_path, Fill())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "log.jsonl"}
    whole, again = distiller(SOURCES["ema"]), distiller(SOURCES["ema"])
    history = run(whole)
    assert same_history(run(again, tmp_path, resume=True), history)
    assert equal(states(again), states(whole))


def test_a_trainer_s_own_checkpoints_go_where_they_should(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "new" / "folder", save_top_k=-1, filename="{epoch}")
    run(distiller(SOURCES["live"]), None, keep)
    assert len(list((tmp_path / "new" / "folder").iterdir())) == EPOCHS


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    run(distiller(SOURCES["average"]), tmp_path, select="accuracy")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["limbeck"]["steps_done"] == EPOCHS * BATCHES
    assert {"exact_resume", "optimizer_states", "lr_schedulers"} <= set(checkpoint)


def test_numbers_drawn_by_any_generator_go_on(tmp_path: Path) -> None:
    import random

    import numpy as np

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(1)

        def forward(self, x: Tensor) -> Tensor:
            factor = 1.0 + 0.1 * (random.random() + np.random.rand()) if self.training else 1.0
            return self.inner(x) * factor

    def drawing() -> Distiller:
        return Distiller(Drawing(), objective(), Live(network(9)))

    def validate(module: Any) -> dict[str, float]:
        return {"x": 0.0}

    whole = drawing()
    run(whole, validate=validate)
    with pytest.raises(Cut):
        run(drawing(), tmp_path, Die(6), validate=validate)
    again = drawing()
    run(again, tmp_path, resume=True, validate=validate)
    assert equal(again.state_dict(), whole.state_dict())
