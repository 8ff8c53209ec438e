from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import LimbeckError, UserError
from limbeck.objectives import KL, CrossEntropy, FeatureMSE, Needs, Objective, total
from limbeck.schedules import Linear
from limbeck.sources import EMA, Average, ClassVectors, Live, Snapshot, Table
from tests.engine.helpers import BATCHES, INPUT, TARGET, distiller, equal, loader, network, objective

BATCH = {"input": INPUT[:8], "target": TARGET[:8], "id": torch.arange(8)}


def trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 2, "enable_checkpointing": False, **quiet, **options})


def by_hand(steps_per_epoch: int, epochs: int) -> nn.Module:
    """What a distiller does, in plain PyTorch."""
    student, teacher = network(1).train(), network(9).eval()
    decayed = [p for p in student.parameters() if p.dim() >= 2]
    rest = [p for p in student.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, fused=True)
    settings = OptimizerSettings(lr=0.05, warmup=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: settings.factor(step, steps_per_epoch * epochs)
    )
    batches = loader()
    torch.manual_seed(5)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            logits = student(batch["input"])
            with torch.no_grad():
                wanted = teacher(batch["input"])
            hard = nn.functional.cross_entropy(logits, batch["target"])
            log_wanted = (wanted / 2.0).log_softmax(-1)
            soft = (log_wanted.exp() * (log_wanted - (logits / 2.0).log_softmax(-1))).sum(-1)
            (0.5 * hard + 0.5 * (soft * 2.0**2).mean()).backward()
            optimizer.step()
            schedule.step()
    return student


def test_training_is_a_hand_written_loop() -> None:
    expected = by_hand(BATCHES, 3).state_dict()
    trained = distiller(network(9))
    fit(trained, loader(), epochs=3, seed=5, accelerator="cpu")
    for name, tensor in trained.student.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_training_is_a_hand_written_loop_over_the_same_losses_bit_for_bit() -> None:
    trained = distiller(network(9))
    fit(trained, loader(), epochs=2, seed=5, accelerator="cpu")
    student, source, goal = network(1).train(), Live(network(9)), objective()
    optimizer, schedule = OptimizerSettings(lr=0.05, warmup=0.1).build(student.parameters(), 2 * BATCHES)
    batches = loader()
    torch.manual_seed(5)
    for _ in range(2):
        for batch in batches:
            optimizer.zero_grad()
            total(goal({"logits": student(batch["input"])}, source(batch, ["logits"]), batch)).backward()
            optimizer.step()
            schedule.step()
    assert equal(trained.student.state_dict(), student.state_dict())


def test_an_ordinary_trainer_does_what_fit_does() -> None:
    ours, theirs = distiller(network(9)), distiller(network(9))
    fit(ours, loader(), epochs=2, seed=5, accelerator="cpu")
    torch.manual_seed(5)
    theirs.build(loader().peek())
    trainer().fit(theirs, loader())
    assert equal(ours.student.state_dict(), theirs.student.state_dict())


@pytest.mark.parametrize("kind", ["live", "ema", "snapshot", "average", "table"])
def test_the_teacher_is_no_part_of_the_student(kind: str) -> None:
    big = network(9, width=2048)
    sources: dict[str, Any] = {
        "live": big,
        "ema": lambda student: EMA(student, 0.9),
        "snapshot": Snapshot,
        "average": lambda student: Average([Live(big), Live(network(8))]),
        "table": lambda student: Table(torch.arange(50), {"logits": torch.randn(50, 4)}),
    }
    module = distiller(sources[kind])
    student = {f"student.{name}" for name in network().state_dict()}
    assert set(module.state_dict()) == student
    assert {name for name, _ in module.named_parameters()} <= student
    before = copy.deepcopy(big.state_dict())
    fit(module, loader(), epochs=1, accelerator="cpu")
    assert equal(big.state_dict(), before)
    assert all(parameter.grad is None for parameter in big.parameters())
    for part in module.teacher.modules():
        assert not any(module.training for module in part.modules())
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    changing = sum(value.numel() for value in flat(checkpoint))
    assert changing == (network_size() if kind in ("ema", "snapshot") else 0)


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value.values() for tensor in flat(item)] if isinstance(value, dict) else []


def network_size() -> int:
    return sum(tensor.numel() for tensor in network().state_dict().values())


def test_a_checkpoint_is_the_student_its_optimizer_and_little_else(tmp_path: Any) -> None:
    module = distiller(network(9, width=4096))
    fit(module, loader(), epochs=1, out=tmp_path, accelerator="cpu")
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["state_dict"]) == set(module.state_dict())
    assert path.stat().st_size < 40_000
    assert not [file for file in tmp_path.iterdir() if file.name not in ("last.ckpt", "log.jsonl")]


def test_a_pretrained_student_in_eval_mode_is_trained_in_training_mode() -> None:
    student = network(1).eval()
    module = Distiller(student, CrossEntropy())
    assert student.training
    trainer(max_epochs=1).fit(module, loader())
    assert student.training
    assert int(student[1].num_batches_tracked) == BATCHES


@pytest.mark.parametrize("how", ["patterns", "by hand"])
@pytest.mark.parametrize("engine", ["fit", "trainer"])
def test_frozen_parts_stay_as_they_are_their_batch_norm_too(how: str, engine: str) -> None:
    student = nn.Sequential(network(1), nn.Linear(4, 4))
    student[0].requires_grad_(how == "patterns")
    module = Distiller(student, CrossEntropy(), trainable=["1.*"] if how == "patterns" else ["*"])
    before = copy.deepcopy(student[0].state_dict())
    head = student[1].weight.clone()
    if engine == "fit":
        fit(module, loader(), epochs=2, validate=lambda m: {"x": 0.0}, accelerator="cpu")
    else:
        trainer().fit(module, loader(), loader(shuffle=False))
    assert equal(student[0].state_dict(), before)
    assert not torch.equal(student[1].weight, head)
    assert not student[0][1].training
    assert student[1].training
    with pytest.raises(UserError, match=r"trainable: given 2.\*; allowed: "):
        Distiller(network(1), CrossEntropy(), trainable=["2.*"])


def test_a_part_that_the_user_put_to_eval_stays_there() -> None:
    module = distiller(network(9))
    module.student[1].eval()
    fit(module, loader(), epochs=2, validate=lambda m: {"x": 0.0}, accelerator="cpu")
    assert int(module.student[1].num_batches_tracked) == 0
    assert module.student[3].training


def test_build_inserts_projectors_and_looks_without_touching() -> None:
    student, teacher = network(1), network(9, width=24)
    module = Distiller(
        student, FeatureMSE(student="mid", teacher="mid"), Live(teacher, taps={"mid": "2"}), taps={"mid": "2"}
    )
    before = copy.deepcopy(student.state_dict())
    assert module.build(BATCH) is module
    assert equal(student.state_dict(), before)
    assert module.objective.projector is not None
    fit(module, loader(), epochs=1, accelerator="cpu")
    assert "objective.projector.linear.weight" in module.state_dict()


def test_finish_leaves_the_student_alone_and_its_output_unchanged() -> None:
    module = Distiller(
        network(1), FeatureMSE(student="mid", teacher="mid"), Live(network(9), taps={"mid": "2"}), taps={"mid": "2"}
    )
    fit(module, loader(), epochs=1, accelerator="cpu")
    module.eval()
    before = module.student_signals(BATCH)["logits"]
    student = module.finish()
    assert torch.equal(student(BATCH["input"]), before)
    assert not student.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in student.modules())
    assert set(student.state_dict()) == set(network(1).state_dict())


def test_signals_do_not_outlive_their_step() -> None:
    seen: list[Any] = []

    class Watching(FeatureMSE):
        def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
            if self.training:
                assert not seen or seen[-1]() is None
                seen.append(weakref.ref(student["mid"]))
            return super().terms(student, teacher, batch)

    module = Distiller(
        network(1), Watching(student="mid", teacher="mid"), Live(network(9), taps={"mid": "2"}), taps={"mid": "2"}
    )
    gc.collect()
    fit(module, loader(), epochs=1, accelerator="cpu")
    assert len(seen) == BATCHES


def test_progress_reaches_schedules() -> None:
    seen: list[float] = []

    class Watching(CrossEntropy):
        def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
            seen.append(self.now(Linear(0.0, 1.0)))
            return super().terms(student, teacher, batch)

    fit(Distiller(network(1), 1.0 * Watching()), loader(), epochs=2, accelerator="cpu")
    assert seen[1:] == [step / (2 * BATCHES) for step in range(2 * BATCHES)]
    seen.clear()
    # A second training is a new one.
    module = Distiller(network(1), 1.0 * Watching())
    for _ in range(2):
        fit(module, loader(), steps=4, accelerator="cpu")
    assert seen[1:5] == seen[6:] == [0.0, 0.25, 0.5, 0.75]
    assert module.steps_done == 4


def test_gradient_norms_are_those_of_each_term() -> None:
    module = distiller(network(9), log_gradient_norms=True)
    history = fit(module, loader(), epochs=1, log_every=2, accelerator="cpu")
    assert {"gradient_norm/cross_entropy", "gradient_norm/kl"} <= set(history.names())
    terms = module.objective(module.student_signals(BATCH), module.teacher_signals(BATCH), BATCH)
    norms = module.gradient_norms(terms)
    for name, value in terms.items():
        gradients = torch.autograd.grad(value, list(module.student.parameters()), retain_graph=True)
        torch.testing.assert_close(norms[f"gradient_norm/{name}"], torch.cat([g.flatten() for g in gradients]).norm())


def test_trackers_get_every_logged_step(tmp_path: Any) -> None:
    module = distiller(network(9))
    trainer(max_epochs=3, logger=CSVLogger(tmp_path), log_every_n_steps=5).fit(module, loader())
    rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert {"cross_entropy", "kl", "loss"} <= set(rows[0].split(","))
    step = rows[0].split(",").index("step")
    assert [row.split(",")[step] for row in rows[1:]] == ["4", "9"]


def test_validation_batches_log_their_means_and_move_nothing() -> None:
    module = distiller(network(9))
    watcher = trainer(max_epochs=1)
    watcher.fit(module, loader(), loader(shuffle=False))
    module.eval()
    with torch.no_grad():
        terms = [module.objective(module.student_signals(b), module.teacher_signals(b), b)["kl"] * len(b["id"])
                 for b in loader(shuffle=False)]  # fmt: skip
    torch.testing.assert_close(watcher.callback_metrics["validation/kl"], torch.stack(terms).sum() / 50)


def test_accumulated_gradients_are_one_step() -> None:
    module = distiller(lambda student: EMA(student, 0.5))
    history = fit(module, loader(), epochs=2, log_every=1, accumulate_grad_batches=2, accelerator="cpu")
    assert history.steps == BATCHES
    assert [line["step"] for line in history.lines] == [1, 2, 3, 4]
    assert module.lr_schedulers().last_epoch == BATCHES


@pytest.mark.parametrize("engine", ["fit", "trainer"])
def test_a_loader_without_a_length_needs_steps(engine: str) -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(loader())

    def two_epochs(module: Distiller) -> None:
        if engine == "fit":
            fit(module, Endless(), epochs=2, accelerator="cpu")
        else:
            trainer().fit(module, Endless())

    with pytest.raises(UserError, match="train: given a loader without a length; allowed: .* steps instead of epochs"):
        two_epochs(distiller(network(9)))
    history = fit(distiller(network(9)), Endless(), steps=6, accelerator="cpu")
    assert history.steps == 6


def test_mistakes_are_named_when_the_distiller_is_made() -> None:
    student = network(1)
    with pytest.raises(UserError, match="teacher: given none; allowed: a source of logits"):
        Distiller(student, KL())
    with pytest.raises(UserError, match="shares 6 weights with the student.*Snapshot or EMA"):
        Distiller(student, KL(), student)
    with pytest.raises(UserError, match="shares 2 weights"):
        Distiller(student, KL(), Average([Live(network(9)), Live(nn.Sequential(student[0], nn.Linear(16, 4)))]))
    with pytest.raises(UserError, match="teacher: given str; allowed: a source, a network or None"):
        Distiller(student, KL(), "hf:bert")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="tap mid: given 9"):
        Distiller(student, CrossEntropy(), taps={"mid": "9"})
    with pytest.raises(UserError, match="trainable parameters: given none"):
        fit(Distiller(network(1).requires_grad_(False), CrossEntropy()), loader(), epochs=1, accelerator="cpu")


def test_a_batch_of_another_form_is_refused_by_name() -> None:
    pairs = DataLoader(TensorDataset(INPUT, TARGET), batch_size=10)
    with pytest.raises(UserError, match="batch: given list; allowed: a mapping with input"):
        fit(Distiller(network(1), CrossEntropy()), pairs, epochs=1, accelerator="cpu")
    with pytest.raises(UserError, match="student signal: given embedding; allowed: logits"):
        fit(Distiller(network(1), CrossEntropy(student="embedding")), loader(), epochs=1, accelerator="cpu")


def test_a_teacher_that_answers_nan_stops_before_the_first_step() -> None:
    teacher = network(9)
    with torch.no_grad():
        teacher[4].bias[0] = torch.nan
    with pytest.raises(
        LimbeckError, match=r"teacher signal logits: NaN or infinite for 16 of 16 samples, first ids \["
    ):
        fit(distiller(teacher), loader(), epochs=1, accelerator="cpu")


def test_a_gradient_may_flow_through_a_borrowed_network_into_the_student() -> None:
    class Borrowed(Objective):
        """The student's output is the teacher's input."""

        needs = Needs(student="logits")

        def __init__(self, source: Live) -> None:
            super().__init__()
            self.source = [source]

        def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
            judged = self.source[0]({"input": student["logits"], "id": batch["id"]}, ["logits"])
            return {"score": judged["logits"].square().mean()}

    torch.manual_seed(2)
    judge = nn.Linear(4, 2)
    module = Distiller(network(1), Borrowed(Live(judge, gradient="through")))
    before = module.student[0].weight.clone()
    fit(module, loader(), epochs=1, accelerator="cpu")
    assert not torch.equal(module.student[0].weight, before)
    assert judge.weight.grad is None


def test_class_vectors_teach_without_a_network() -> None:
    module = Distiller(
        network(1),
        KL(teacher="soft_label"),
        ClassVectors(torch.eye(4) * 3, name="soft_label"),
        optimizer=OptimizerSettings(lr=0.05),
    )
    history = fit(module, loader(), epochs=10, log_every=1, accelerator="cpu")
    curve = history.curve("kl")
    assert curve["x"] == list(range(1, 41))
    assert sum(curve["y"][-4:]) < sum(curve["y"][:4])


def test_a_plain_trainer_s_checkpoint_resumes_bit_for_bit(tmp_path: Any) -> None:
    def run(path: Any = None, **options: Any) -> Distiller:
        module = distiller(lambda student: EMA(student, 0.9, every="epoch"))
        torch.manual_seed(5)
        module.build(loader().peek())
        trainer(**options).fit(module, loader(), loader(shuffle=False), ckpt_path=path, weights_only=True)
        return module

    keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=3, filename="{step}")
    whole = run(max_epochs=4, callbacks=[keep], enable_checkpointing=True)
    ends = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="end-{epoch}")
    run(max_epochs=4, callbacks=[ends], enable_checkpointing=True)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 9
    for file in files:
        again = run(file, max_epochs=4)
        assert equal(again.student.state_dict(), whole.student.state_dict()), file.name
        assert equal(again.teacher.state_dict()["weights"], whole.teacher.state_dict()["weights"]), file.name


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Any) -> None:
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(LimbeckError, match="not written by a Distiller"):
        distiller(network(9)).on_load_checkpoint(torch.load(tmp_path / "x.ckpt"))
    checkpoint: dict[str, Any] = {}
    distiller(objective=CrossEntropy()).on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match="resume: given a checkpoint without a teacher"):
        distiller(network(9)).on_load_checkpoint(checkpoint)
    distiller(network(9)).on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match="teacher: given another teacher than the checkpoint's"):
        distiller(network(8)).on_load_checkpoint(checkpoint)
    distiller(network(9)).on_load_checkpoint(checkpoint)


class Breaks(Objective):
    """A loss that is not a number from a given step on, once or for good."""

    needs = Needs(student="logits")

    def __init__(self, at: int, reaches_the_weights: bool = True) -> None:
        super().__init__()
        self.at, self.reaches_the_weights, self.step = at, reaches_the_weights, 0

    def forward(self, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
        self.step += self.training
        loss = nn.functional.cross_entropy(student["logits"], batch["target"])
        if self.step != self.at:
            return {"broken": loss}
        return {"broken": loss * torch.nan if self.reaches_the_weights else loss + torch.inf}


def test_a_training_that_diverged_ends_with_the_reason(tmp_path: Any) -> None:
    diverging = distiller(objective=CrossEntropy() + Breaks(at=5))
    with pytest.raises(LimbeckError, match=r"training diverged: .*broken, loss and the weights .* at step 6; a lower"):
        fit(diverging, loader(), epochs=4, log_every=2, out=tmp_path, accelerator="cpu")
    assert (
        not (tmp_path / "last.ckpt").exists()
        or torch.isfinite(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["student.0.weight"]).all()
    ), "the checkpoint is from before"
    once = distiller(objective=Breaks(at=6, reaches_the_weights=False))
    assert fit(once, loader(), epochs=2, log_every=2, accelerator="cpu").steps == 8
    asked = distiller(objective=Breaks(at=5))
    assert fit(asked, loader(), epochs=2, log_every=2, stop_when_diverged=False, accelerator="cpu").steps == 8
