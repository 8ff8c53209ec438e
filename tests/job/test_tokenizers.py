"""A teacher of another tokenizer, a teacher that writes, and steps in parts, through ``limbeck distill``."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

import limbeck
from limbeck.errors import UserError
from limbeck.job.assess import assess
from limbeck.job.plan import Plan, make_plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.teacher_texts import write_teacher_texts
from limbeck.job.teachers import teaching
from limbeck.job.train import cached_teacher, distiller_of, loader_of, train_student
from limbeck.language import Sequences
from tests.job.helpers import COMMON, Job, plan_of
from tests.models.tiny import chat_tokenizer, save_chat_llama

ALIGNED = "0.5 * cross_entropy + likelihood_matching(temperature=10) + universal_logit_distance"
TOLD = 'likelihood_matching(temperature=10, teacher="log_probs")'


@pytest.fixture(scope="module")
def fine_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose tokens are nearly bytes."""
    return save_chat_llama(tmp_path_factory.mktemp("fine"), 2, 7, chat_tokenizer(size=266))


@pytest.fixture
def given(chat_model: Path, fine_model: Path, chat_table: Path) -> Job:
    return f"hf:{chat_model}", f"hf:{fine_model}", f"parquet:{chat_table}"


@pytest.mark.usefixtures("quick")
def test_a_student_learns_from_a_teacher_of_another_tokenizer(given: Job, tmp_path: Path) -> None:
    options = {**COMMON, "epochs": 4, "answers": 2, "decoding": {"length": 4}, "quiet": True, "baseline": "untrained"}
    result = limbeck.distill(*given, tmp_path / "out", objective=ALIGNED, **options)
    said = " ".join(choice["reason"] for choice in result["plan"])
    assert "of the spans are one token on both sides" in said
    assert "by its own chat template" in said
    assert result["alignment"]["student_tokens_per_span"] > result["alignment"]["teacher_tokens_per_span"]
    assert result["alignment"]["unaligned"] < 0.2
    assert result["primary_metric"] == "bits_per_byte"
    models = result["models"]
    assert models["student"]["bits_per_byte"] < models["student without distillation"]["bits_per_byte"]
    assert models["student"]["span_gap"] < models["student without distillation"]["span_gap"]
    assert "perplexity" not in models["teacher"], "its tokens are others"
    assert {"rouge_l", "rouge_l_to_teacher"} <= set(models["student"])
    assert result["curves"]["spans/one_to_one"]["y"]
    assert "bits per byte" in (tmp_path / "out" / "report.html").read_text()


def test_the_teacher_reads_its_own_template_and_the_same_answer(given: Job) -> None:
    plan = plan_of(given, objective=ALIGNED)
    language = plan.language
    assert language is not None
    assert language.alignment is not None
    ours, theirs = plan.student.tokenizer, plan.teacher.tokenizer
    for rows in language.loader("train", 6):
        text, read = Sequences.of(rows["input"]), language.alignment.read(rows["input"])
        for row in range(len(text)):
            for side, tokenizer in ((text, ours), (read, theirs)):
                prompt = tokenizer.decode(side.prompt[row][side.prompt_mask[row]])
                assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
            whole = [tokenizer.decode(side.answer[row][side.answer_mask[row]]) for side, tokenizer in
                     ((text, ours), (read, theirs))]  # fmt: skip
            assert whole[0] == whole[1]


def test_bits_per_byte_are_of_the_same_text(given: Job) -> None:
    plan = plan_of(given, objective=ALIGNED)
    language, uniform = plan.language, {}
    assert language is not None
    assert language.alignment is not None
    for network in (plan.teacher, plan.student):
        for parameter in network.module.parameters():
            parameter.data.zero_()
        uniform[network.tokenizer] = assess(plan, network, "validation").quality["bits_per_byte"]
    tokens, size = dict.fromkeys(uniform, 0), 0
    for rows in language.loader("validation", 3):
        found = language.alignment.retokenizer(Sequences.of(rows["input"]))
        tokens[plan.teacher.tokenizer] += int((found.teacher_span >= 0).sum())
        tokens[plan.student.tokenizer] += int((found.student_span >= 0).sum())
        size += found.report.text - found.report.unaligned
    for tokenizer, bits in uniform.items():
        assert bits == pytest.approx(tokens[tokenizer] * math.log2(len(tokenizer)) / size, rel=1e-5)


@pytest.mark.parametrize(("objective", "codec"), [(TOLD, None), ("universal_logit_distance", "topk:300:float32")])
def test_a_cache_of_the_teachers_own_tokens(given: Job, tmp_path: Path, objective: str, codec: str | None) -> None:
    if codec is not None:
        codec = codec.replace("300", str(len(plan_of(given, objective=objective).teacher.tokenizer)))
    plan = plan_of(given, objective=objective, signals="cache", codec=codec)
    with teaching(plan) as live:
        cached = cached_teacher(plan, tmp_path / "cache", live, Progress(quiet=True))
        batch = loader_of(plan, plan.data.splits.train, shuffle=True, live_teacher=False).peek()
        losses = []
        for source in (live, cached):
            trial = distiller_of(plan, plan.objective, source)
            ready = trial.plain(batch)  # type: ignore[operator]
            (term,) = plan.objective(trial.student_signals(ready), trial.teacher_signals(ready), ready).values()
            losses.append(float(term.detach()))
        train_student(plan, cached, None, Progress(quiet=True))
    assert losses[0] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert plan.language is not None
    assert {"text", "alignment"} <= set(plan.language.fingerprint())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "another vocabulary: .*likelihood_matching or universal_logit_distance"),
        ({"objective": "kl + likelihood_matching"}, "another vocabulary"),
        ({"objective": "cross_entropy"}, "another vocabulary"),
        ({"objective": ALIGNED, "signals": "hidden"}, "signals: given hidden; allowed: live or cache, across"),
        ({"objective": "likelihood_matching", "signals": "cache"}, r'allowed: live, or .*teacher="log_probs"'),
        ({"objective": ALIGNED, "text": "teacher"}, "text: given teacher; allowed: data or student"),
    ],
)
def test_refused_across_tokenizers(given: Job, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(given, **options)


def test_the_student_writes_for_a_teacher_of_another_tokenizer(given: Job) -> None:
    plan = plan_of(given, objective=TOLD, text="student", decoding={"length": 6}, epochs=3)
    with teaching(plan) as live:
        history = train_student(plan, live, None, Progress(quiet=True))
    values = history.curve("likelihood_matching")["y"]
    assert values
    assert all(math.isfinite(value) and value > 0 for value in values)


def test_the_same_tokens_under_other_numbers_are_translated(job: Job, chat_model: Path, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = [word for word, number in content["model"]["vocab"].items() if number > 2]
    numbers = [content["model"]["vocab"][word] for word in words]
    random.Random(0).shuffle(numbers)
    content["model"]["vocab"].update(zip(words, numbers, strict=True))
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="<pad>", eos_token="<|im_end|>",
        model_max_length=128,
    )  # fmt: skip
    other.chat_template = tokenizer.chat_template
    student = save_chat_llama(tmp_path / "student", 2, 3, other)
    plan = plan_of((job[0], f"hf:{student}", job[2]))
    assert any("the teacher translates" in choice.reason for choice in plan.choices)
    here = assess(plan, plan.teacher, "test").quality["perplexity"]
    there = plan_of(job)
    assert here == pytest.approx(assess(there, there.teacher, "test").quality["perplexity"], rel=1e-4)


def write(plan: Plan, out: Path) -> None:
    with teaching(plan) as live:
        write_teacher_texts(plan, out, live, Progress(quiet=True))


@pytest.mark.parametrize("signals", ["live", "cache"])
@pytest.mark.usefixtures("quick")
def test_texts_of_the_teacher_are_written_once(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: str
) -> None:
    from limbeck.language import generation

    asked, original = [0], generation.generate

    def generate(*args: Any, **options: Any) -> Any:
        asked[0] += 1
        if asked[0] == 3 and signals == "live":
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(generation, "generate", generate)
    options = {
        **COMMON, "text": "teacher", "decoding": {"length": 6}, "signals": signals, "answers": 0, "quiet": True,
    }  # fmt: skip
    out = tmp_path / "out"
    if signals == "live":
        with pytest.raises(KeyboardInterrupt):
            limbeck.distill(*job, out, **options)
        assert len((out / "texts.jsonl").read_text().splitlines()) == 1 + 16
    result = limbeck.distill(*job, out, **options)
    lines = (out / "texts.jsonl").read_text().splitlines()
    plan = plan_of(job, text="teacher", decoding={"length": 6})
    assert plan.language is not None
    before = asked[0]
    write(plan, out)
    assert asked[0] == before, "what is there is not written again"
    assert plan.language.written is not None
    assert len(lines) == 1 + len(plan.language.written)
    told = {line["id"]: line["answer"] for line in map(json.loads, lines[1:])}
    for number, one in zip(plan.language.written.id.tolist(), plan.language.written.input):
        assert one.ids[one.learnt].tolist() == told[number]
    # What the baseline learns is the data's.
    own, written = (next(iter(plan.language.loader(part, 4)))["input"]["answer"] for part in ("data", "train"))
    assert not (own.shape == written.shape and torch.equal(own, written))
    assert result["models"]["student"]["perplexity"] > 0
    with pytest.raises(UserError, match="texts.jsonl, of another generator"):
        write(plan_of(job, text="teacher", decoding={"length": 5}), out)
    replaced = plan_of(job, text="teacher(greedy=True)", decoding={"length": 5}, overwrite=True)
    write(replaced, out)
    assert replaced.language is not None
    assert replaced.language.written is not None


def test_a_step_in_parts_is_the_same_step(job: Job) -> None:
    weights = []
    for accumulate in (1, 3):
        plan = plan_of(job, accumulate=accumulate, batch_size=48, epochs=1, lr=0.01)
        assert plan.steps == 1
        with teaching(plan) as live:
            assert train_student(plan, live, None, Progress(quiet=True)).steps == 1
        weights.append(plan.student.module.get_parameter("model.layers.0.mlp.up_proj.weight").detach())
    torch.testing.assert_close(*weights, rtol=0, atol=2e-5)


def test_parts_that_cannot_be(job: Job, text_table: Path, text_classifier: Path) -> None:
    with pytest.raises(UserError, match="accumulate: given 9; allowed: 1 to 8"):
        plan_of(job, accumulate=9)
    with pytest.raises(UserError, match="accumulate: given 0"):
        Settings(*job, "out", accumulate=0).check()
    references = f"hf:{text_classifier}", "slice:layers=0", f"csv:{text_table}"
    with pytest.raises(UserError, match="samples of a step with each other"):
        make_plan(Settings(*references, "out", objective="dist", accumulate=2))
