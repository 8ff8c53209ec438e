"""One training step is the same however its rows are laid out, split, stored or shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.cache import write_cache
from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, fit
from limbeck.language import SequenceDistiller, Sequences, answer_logits, packed
from limbeck.losses import divergences
from limbeck.losses.vocabulary import linear_divergence
from limbeck.nn.mode import evaluating
from limbeck.objectives import KL, CrossEntropy, DataCrossEntropy, JensenShannon, ReverseKL
from limbeck.sources import Cached, Live
from limbeck.systems.language.multi_granularity.identities import network, texts
from tests.language.exactness_job import COUNT, DESCENT, OBJECTIVES, data, step

ROOT = Path(__file__).parents[2]


# transformers' norms and rotary positions are float32 in a float64 network too: that is the rounding to expect wherever
# a gradient passes them in another scale.
ROUNDING: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-7}


def same(found: dict[str, Any], want: dict[str, Any]) -> None:
    assert found["loss"] == pytest.approx(want["loss"], rel=1e-6)
    for name, gradient in want["gradient"].items():
        torch.testing.assert_close(found["gradient"][name], gradient, **ROUNDING)
    assert max(float(gradient.abs().max()) for gradient in want["gradient"].values()) > 1e-2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_split_into_micro_batches(objective: str) -> None:
    whole = step(COUNT, objective=objective)
    for size, pieces in ((6, 2), (4, 3), (5, 3), (1, COUNT)):
        same(step(size, objective=objective, accumulate=pieces), whole)


def test_a_last_shorter_window_and_text_that_is_only_being_written() -> None:
    # Three micro-batches where four would make a step: the epoch's end makes it.
    same(step(4, accumulate=4), step(COUNT))
    same(step(3, accumulate=4, on_policy=True), step(COUNT, on_policy=True))


def test_the_mean_of_means_would_be_another_step() -> None:
    whole = step(COUNT)
    pieces = [slice(start, start + 4) for start in range(0, COUNT, 4)]
    one, two, given = network().double(), network(1).double(), data()
    values = [terms(one, two, given.select(torch.arange(COUNT)[piece]).batch())[0] for piece in pieces]
    assert abs(sum(values) / 3 - whole["loss"]) > 0.01


def test_two_processes(tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
    }
    job = Path(__file__).with_name("exactness_job.py")
    done = subprocess.run(
        [sys.executable, str(job), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    whole = step(COUNT)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        same(found["whole"], whole)
        same(found["accumulated"], whole)


def terms(student: nn.Module, teacher: nn.Module, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one batch through the plain path, without a trainer."""
    student.zero_grad()
    with torch.no_grad(), evaluating(teacher):
        theirs = answer_logits(teacher, batch)
    objective = KL() + 0.5 * ReverseKL(temperature=2) + JensenShannon(beta=0.2) + 0.1 * CrossEntropy()
    found = objective(answer_logits(student, batch), theirs, batch)
    value = torch.stack(list(found.values())).sum()
    value.backward()
    gradient = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    return float(value.detach()), gradient


def beside(given: Sequences, *, left: bool) -> dict[str, Any]:
    """The same texts, prompt and answer in one piece, padded on one side."""
    ids, present = given.joined()
    counted = torch.cat([torch.zeros_like(given.prompt_mask), given.counted], 1)
    order = present.int().argsort(dim=1, stable=True, descending=not left)
    ids, present, counted = (part.gather(1, order) for part in (ids, present, counted))
    place = (present.long().cumsum(1) - 1).clamp_min(0)
    inputs = {"input_ids": ids, "attention_mask": present.long(), "position_ids": place}
    return {"input": inputs, "target": ids[:, 1:], "mask": counted[:, 1:] & present[:, :-1]}


def wider(given: Sequences) -> Sequences:
    def grown(ids: Tensor, mask: Tensor, pad: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return nn.functional.pad(ids, pad, value=7), nn.functional.pad(mask, pad)

    learnt = nn.functional.pad(given.counted, (0, 5))
    return Sequences(
        *grown(given.prompt, given.prompt_mask, (4, 0)), *grown(given.answer, given.answer_mask, (0, 5)), learnt
    )


def test_any_layout() -> None:
    one, two, given = network().double(), network(1).double(), data()
    loss, gradient = terms(one, two, given.batch())
    layouts = {
        "left": beside(given, left=True), "right": beside(given, left=False), "more padding": wider(given).batch(),
        "packed": packed(given, 40, dtype=torch.float64), "one long row": packed(given, 400, dtype=torch.float64),
    }  # fmt: skip
    assert len(layouts["packed"]["target"]) < COUNT
    for name, batch in layouts.items():
        found, other = terms(one, two, batch)
        assert found == pytest.approx(loss, rel=1e-10), name
        for weight, want in gradient.items():
            torch.testing.assert_close(other[weight], want, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_any_chunk_size_and_the_plain_path(name: str) -> None:
    one, two, batch = network().double(), network(1).double(), data().batch()
    count = batch["target"].shape[1]

    def hidden(model: Any) -> Tensor:
        return model.model(**batch["input"]).last_hidden_state[:, -count - 1 : -1]  # type: ignore[no-any-return]

    def gradients(value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, list(one.parameters())))

    with torch.no_grad():
        theirs, logits = hidden(two), answer_logits(two, batch)["logits"]
    loss = getattr(divergences, name)(answer_logits(one, batch)["logits"], logits, mask=batch["mask"])
    want = gradients(loss)
    heads = [
        next(value for name, value in model.named_parameters() if name == "lm_head.weight") for model in (one, two)
    ]
    for chunk in (1, 7, 1000, None):
        found = linear_divergence(
            hidden(one), heads[0], theirs, heads[1], divergence=name, mask=batch["mask"], chunk=chunk
        )
        torch.testing.assert_close(found, loss)
        for ours, plain in zip(gradients(found), want, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-11)


def test_a_lossless_cache_is_the_live_teacher(tmp_path: Path) -> None:
    columns = {"input": data().columns()}
    source = Live(network(1), forward=answer_logits)
    batches = [
        {**Sequences.of(batch["input"]).trimmed().batch(), "id": batch["id"]}
        for batch in TensorLoader(columns, 5, shuffle=False)
    ]
    write_cache(source, batches, tmp_path / "cache", codec="float32", ragged=["logits"])
    weights = {}
    for name, teacher in {"live": source, "cached": Cached(tmp_path / "cache")}.items():
        one = SequenceDistiller(network(), KL() + DataCrossEntropy(), teacher)
        history = fit(one, TensorLoader(columns, 5, seed=1), steps=4, accelerator="cpu", log_every=1)
        weights[name] = (history.curve("loss")["y"], one.student.state_dict())
    # Rows that no loss counts are not stored, and the teacher's batches were others: rounding differs, nothing else.
    assert weights["cached"][0] == pytest.approx(weights["live"][0], rel=1e-5)
    for key, value in weights["live"][1].items():
        torch.testing.assert_close(weights["cached"][1][key], value, rtol=1e-4, atol=1e-5)


def test_texts_without_a_counted_token_give_zero() -> None:
    prompts = texts(4)
    empty = prompts.with_answers(torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.bool))
    silent = Sequences.of({**prompts.columns(), "learnt": torch.zeros_like(prompts.answer_mask)})
    for given in (empty, silent):
        loss, gradient = terms(network(), network(1), given.batch())
        assert loss == 0
        assert all(torch.equal(value, torch.zeros_like(value)) for value in gradient.values())
        one = SequenceDistiller(network(), KL(), network(1))
        before = [value.clone() for value in one.student.state_dict().values()]
        one.optimizer_settings = DESCENT
        fit(one, TensorLoader({"input": given.columns()}, 2), steps=2, accelerator="cpu", accumulate_grad_batches=2)
        assert all(torch.equal(a, b) for a, b in zip(before, one.student.state_dict().values(), strict=True))


def test_a_micro_batch_without_a_counted_token_changes_nothing() -> None:
    given = texts(4)
    learnt = given.answer_mask.clone()
    learnt[2:] = False
    part = Sequences.of({**given.columns(), "learnt": learnt})
    want = run(given.select(torch.arange(2)), 2, 1)
    for found in (run(part, 2, 2), run(part.select(torch.tensor([2, 3, 0, 1])), 2, 2)):
        for ours, theirs in zip(found, want, strict=True):
            torch.testing.assert_close(ours, theirs, **ROUNDING)


def run(given: Sequences, size: int, pieces: int) -> list[Tensor]:
    one = SequenceDistiller(network().double(), KL(), network(1).double(), optimizer=DESCENT)
    loader = TensorLoader({"input": given.columns()}, size, shuffle=False)
    fit(one, loader, steps=1, accelerator="cpu", accumulate_grad_batches=pieces)
    return list(one.student.state_dict().values())


def test_clipping_sees_the_whole_gradient() -> None:
    whole = step(COUNT, gradient_clip=0.01)
    norm = torch.stack([value.norm() for value in whole["gradient"].values()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    same_direction = step(4, accumulate=3, gradient_clip=0.01)
    for name, want in whole["gradient"].items():
        torch.testing.assert_close(same_direction["gradient"][name], want, **ROUNDING)


def test_the_teacher_holds_no_gradient_and_is_in_no_checkpoint(tmp_path: Path) -> None:
    teacher = network(1)
    one = SequenceDistiller(network(), KL(), teacher)
    fit(one, TensorLoader({"input": data().columns()}, 4), steps=2, accelerator="cpu", out=tmp_path)
    assert all(weight.grad is None for weight in teacher.parameters())
    signal = one.teacher_signals(one.plain(next(iter(TensorLoader({"input": data().columns()}, 4)))))["logits"]
    assert isinstance(signal, Tensor)
    assert not signal.requires_grad
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    held = list(tensors(checkpoint))

    def inside(weight: Tensor) -> bool:
        return any(tensor.shape == weight.shape and torch.equal(tensor, weight) for tensor in held)

    assert all(inside(weight) for weight in one.student.parameters())
    # Norms are ones in every network.
    assert not any(inside(weight) for name, weight in teacher.named_parameters() if "norm" not in name)


def tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def test_packed_rows_train_through_the_plain_distiller() -> None:
    given = data()
    batch = {**packed(given, 40), "id": torch.arange(len(packed(given, 40)["target"]))}
    one = Distiller(network(), KL(), Live(network(1), forward=answer_logits), forward=answer_logits)
    found = one.objective(one.student_signals(batch), one.teacher_signals(batch), batch)["kl"]
    plain = SequenceDistiller(network(), KL(), network(1))
    want = given.batch()
    value = plain.objective(plain.student_signals(want), plain.teacher_signals(want), want)["kl"]
    torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
