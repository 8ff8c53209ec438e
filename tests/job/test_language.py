"""Language models through ``limbeck distill`` and ``limbeck cache``: whose text, whose signals, what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import limbeck
from limbeck.cache import CacheReader
from limbeck.cli import main
from limbeck.engine.distiller import Distiller
from limbeck.errors import UserError
from limbeck.job.plan import Plan, frozen_copy
from limbeck.job.preview import preview
from limbeck.job.progress import Progress
from limbeck.job.teachers import teaching, with_head
from limbeck.job.train import cached_teacher, distiller_of, loader_of, train_student
from limbeck.language import Sequences
from limbeck.signals import HeadLogits, SparseLogits
from tests.job.helpers import COMMON, Job, plan_of
from tests.models.tiny import save_chat_llama


def test_from_chats_to_a_student_that_transformers_opens(job: Job, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    result = limbeck.distill(*job, out, quiet=True, answers=2, decoding={"length": 6}, **COMMON)
    teacher, student = result["models"]["teacher"], result["models"]["student"]
    assert {"perplexity", "rouge_l", "tokens_per_second", "written_per_second", "bytes"} <= set(teacher)
    assert {"kl", "agreement", "rouge_l_to_teacher"} <= set(student)
    assert student["perplexity"] < teacher["perplexity"]
    said = " ".join(choice["reason"] for choice in result["plan"])
    assert "texts cut at 80 tokens" in said
    assert "no whole logits are kept" in said

    model, tokenizer = (kind.from_pretrained(out / "student") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.num_hidden_layers == 2
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generation_config.max_new_tokens == 17
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what does the cat"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
    assert model.generate(ids, do_sample=False).shape[1] <= ids.shape[1] + 17
    assert "perplexity" in (out / "report.html").read_text()


def test_learnt_tokens_are_the_assistants_whatever_the_layout(job: Job) -> None:
    plan = plan_of(job)
    language, tokenizer = plan.language, plan.student.tokenizer
    assert language is not None
    for prompts in (False, True):
        seen = 0
        for batch in language.loader("train", 8, prompts=prompts):
            text = Sequences.of(batch["input"])
            for row in range(len(text)):
                words = tokenizer.decode(text.answer[row][text.counted[row]])
                assert "user" not in words
                assert "what" not in words
                seen += int(text.counted[row].sum())
        assert seen == language.learnt("train")


def answers_of(plan: Plan, folder: Path) -> list[dict[int, Any]]:
    """Teacher logits of every sample, live and from the cache, as what the losses make of them."""
    assert plan.language is not None
    with teaching(plan) as live:
        sources = [with_head(plan, live), cached_teacher(plan, folder, live, Progress(quiet=True))]
        found: list[dict[int, Any]] = [{}, {}]
        for batch in plan.language.loader("train", 5, ready=True):
            for source, kept in zip(sources, found):
                logits = source(batch, ("logits",))["logits"]
                dense = logits if isinstance(logits, torch.Tensor) else logits.to_dense()
                for row, number in enumerate(batch["id"].tolist()):
                    kept[number] = dense[row][batch["mask"][row]].log_softmax(-1)
    return found


@pytest.mark.parametrize(
    ("signals", "codec", "tolerance"), [("hidden", "float32", 1e-5), ("cache", "topk:300:float32", 1e-5)]
)
def test_cached_signals_are_the_live_teachers(
    job: Job, tmp_path: Path, signals: str, codec: str, tolerance: float
) -> None:
    plan = plan_of(job, signals=signals, codec=codec.replace("300", str(_vocabulary(job))))
    live, cached = answers_of(plan, tmp_path / "cache")
    assert live.keys() == cached.keys()
    for number, logits in live.items():
        torch.testing.assert_close(cached[number], logits, rtol=0, atol=tolerance)


def _vocabulary(job: Job) -> int:
    folder = Path(job[0].removeprefix("hf:"))
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def test_training_from_hidden_states_is_training_live(job: Job, tmp_path: Path) -> None:
    weights = []
    for signals, codec in (("live", None), ("hidden", "float32")):
        plan = plan_of(job, signals=signals, codec=codec)
        with teaching(plan) as live:
            source = live if signals == "live" else cached_teacher(plan, tmp_path / "c", live, Progress(quiet=True))
            train_student(plan, source, None, Progress(quiet=True))
        weights.append(plan.student.module.get_parameter("model.layers.0.mlp.up_proj.weight").detach())
    torch.testing.assert_close(*weights, rtol=0, atol=2e-5)


def test_no_whole_logits_reach_the_losses(job: Job, tmp_path: Path) -> None:
    for signals, kind in (("live", HeadLogits), ("cache", SparseLogits), ("hidden", HeadLogits)):
        plan = plan_of(job, signals=signals)
        with teaching(plan) as live:
            source = cached_teacher(plan, tmp_path / signals, live, Progress(quiet=True)) if plan.cached else live
            distiller = distiller_of(plan, plan.objective, source)
            batch = distiller.plain(loader_of(plan, plan.data.splits.train, shuffle=True, live_teacher=True).peek())  # type: ignore[operator]
            assert isinstance(distiller.student_signals(batch)["logits"], HeadLogits)
            assert isinstance(distiller.teacher_signals(batch)["logits"], kind)


@pytest.mark.parametrize("text", ["mix(student=0.5, by=corrected)", "replay(capacity=8)"])
@pytest.mark.usefixtures("quick")
def test_written_texts_are_resumed_to_the_same_bits(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    options = {
        **COMMON, "text": text, "decoding": {"length": 5, "temperature": 0.8}, "baseline": "none", "answers": 0,
        "quiet": True,
    }  # fmt: skip
    limbeck.distill(*job, tmp_path / "whole", **options)
    left, original = {"steps": 3}, Distiller.training_step

    def cut(self: Distiller, batch: Any, index: int) -> Any:
        left["steps"] -= 1
        if left["steps"] < 0:
            raise KeyboardInterrupt
        return original(self, batch, index)

    monkeypatch.setattr(Distiller, "training_step", cut)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        limbeck.distill(*job, tmp_path / "cut", **options)
    monkeypatch.setattr(Distiller, "training_step", original)
    limbeck.distill(*job, tmp_path / "cut", **options, resume=True)
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("quick")
def test_teachers_by_a_column_and_by_weights(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = f"hf:{save_chat_llama(tmp_path / 'other', seed=5)}"
    words = ["distill", "--task", "causal-lm", "--student", job[1], "--data", job[2], "--epochs", "1"]
    words += ["--teacher", f"a={job[0]}", "--teacher", f"b={other}", "--max-length", "80", "--answers", "0"]
    words += ["--columns", "teacher=by", "--out", str(tmp_path / "out"), "--baseline", "none"]
    assert main(words) == 0
    assert "the teacher that its column names, of a, b" in " ".join(capsys.readouterr().err.split())
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert json.loads(kept["teacher"]) == [f"a={job[0]}", f"b={other}"]

    routed = plan_of((kept["teacher"], *job[1:]), columns={"teacher": "by"})
    mean = plan_of((kept["teacher"], *job[1:]), teacher_weights=[1.0, 3.0])
    assert routed.language is not None
    batch = next(iter(routed.language.loader("train", 6, ready=True)))
    alone = []
    for name in "ab":
        one = {"a": routed.teachers["a"], "b": routed.teachers["b"]}[name]
        with torch.no_grad():
            alone.append(routed.language.forward(whole=True)(one.module, batch)["logits"])
    with teaching(routed) as source:
        found = source(batch, ("logits",))["logits"]
    for row, name in enumerate(batch["teacher"]):
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found[row], alone["ab".index(name)][row])
    with teaching(mean) as source:
        found = source(batch, ("logits",))["logits"]
    want = (0.25 * alone[0].softmax(-1) + 0.75 * alone[1].softmax(-1)).log()
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"columns\.teacher: given b; allowed: teachers by name: a"):
        plan_of((json.dumps([f"a={job[0]}"]), *job[1:]), columns={"teacher": "by"})
    with pytest.raises(UserError, match="nothing: a column names the teacher"):
        plan_of((kept["teacher"], *job[1:]), columns={"teacher": "by"}, teacher_weights=[1.0, 1.0])


def test_a_server_gets_its_options(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("limbeck.job.served.Server", lambda *words, **options: asked.append((words, options)))
    plan = plan_of(job, signals="server:http://127.0.0.1:9,model=tiny,top=5,patience=2.5")
    with teaching(plan):
        words, options = asked[0]
    assert words == ("http://127.0.0.1:9", "tiny", plan.teacher.tokenizer)
    assert options == {"top": 5, "patience": 2.5, "unread": 0.2, "size": _vocabulary(job)}
    for wrong, message in (("top=5", "model's name is missing"), ("model=a,k=5", "signals option: given k")):
        with pytest.raises(UserError, match=message):
            plan_of(job, signals=f"server:http://127.0.0.1:9,{wrong}")


def test_cache_says_what_it_will_cost_and_goes_on(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "--task", "causal-lm", "--teacher", job[0], "--data", job[2], "--max-length", "80"]
    words += ["--codec", "topk:8", "--out", str(tmp_path / "cache")]
    assert main(words) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert "bytes a token" in said.err
    assert told["expected_bytes"] == pytest.approx(told["bytes"], rel=0.2)
    assert told["bytes_per_token"] < 60
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    assert main(words) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")} == files
    assert main([*words[:-4], "--codec", "topk:8", "--out", str(tmp_path / "cache"), "--max-length", "60"]) == 2
    assert "text" in capsys.readouterr().err


def test_several_writers_fill_one_cache(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "--task", "causal-lm", "--teacher", job[0], "--data", job[2], "--max-length", "80"]
    words += ["--codec", "topk:8:float32", "--batch-size", "8"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "two"), "--writers", "2"]) == 0
    capsys.readouterr()
    plan = plan_of(job, batch_size=8, precision="auto", teacher_precision="auto", codec="topk:8:float32", seed=0)
    assert plan.language is not None
    readers = [CacheReader(tmp_path / name) for name in ("one", "two")]
    for batch in plan.language.loader("train", 8, ready=True):
        first, second = (
            reader.read(batch["id"], None, ("logits",), mask=batch["mask"])["logits"] for reader in readers
        )
        assert isinstance(first, SparseLogits)
        assert isinstance(second, SparseLogits)
        torch.testing.assert_close(first.values, second.values, rtol=0, atol=1e-3)
        torch.testing.assert_close(first.indices[..., 0], second.indices[..., 0])
    assert main([*words, "--out", str(tmp_path / "three"), "--part", "4/4"]) == 2
    assert "part: given 4/4" in capsys.readouterr().err


def test_a_dry_run_says_what_it_takes(job: Job) -> None:
    found = limbeck.distill(*job, dry_run=True, quiet=True, signals="cache", **COMMON)
    costs = found["costs"]
    assert costs["steps"] > 0
    assert costs["cache_bytes"] > 1000
    assert costs["weights_and_optimizer_bytes"] > 1000
    assert costs["memory_of"] == "rss"
    assert costs["peak_bytes"] > costs["step_bytes"]


def test_a_dry_run_measures_the_memory_of_a_step_of_the_longest_texts(job: Job) -> None:
    plan, block, widths = plan_of(job, accumulate=2), 300 << 20, []
    assert plan.language is not None

    def takes(module: Any, args: Any, given: Any) -> None:
        widths.append(given["input_ids"].shape[1])
        if module.training:
            torch.ones(block, dtype=torch.uint8)

    # Losses run the head, so that the model as a whole is not called.
    plan.student.module.get_submodule("model").register_forward_pre_hook(takes, with_kwargs=True)
    before = frozen_copy(plan.student.module)
    with teaching(plan) as live:
        costs = preview(plan, live, Progress(quiet=True))["costs"]
    # The system counts resident pages a little late.
    assert 0.99 * block <= costs["step_bytes"] < 1.5 * block
    assert widths[0] == max(len(one) for one in plan.language.splits.train.input)  # type: ignore[arg-type, union-attr]
    assert all(torch.equal(value, before[name]) for name, value in plan.student.module.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": "cache", "text": "student"}, "signals: given cached; allowed: live, .*no cache holds"),
        ({"cache": "somewhere", "text": "mix(student=0.5)"}, "no cache holds"),
        ({"signals": "disk"}, "signals: given disk; allowed: live: the teacher"),
        ({"signals": "server:localhost"}, "allowed: server:http://HOST:PORT"),
        ({"text": "students"}, "name: given students"),
        ({"decoding": {"heat": 1.0}}, "decoding: given heat; allowed: temperature, top_p, length"),
        ({"decoding": {"temperature": 0.0}}, "decoding temperature: given 0.0"),
        ({"text": "student", "decoding": {"length": 120}}, "128 together"),
        ({"teacher_weights": [1.0]}, "teacher_weights"),
        ({"cache": "off", "signals": "hidden"}, "allowed: live, with --cache off"),
        ({"task": "classification", "text": "student"}, "only language models write"),
    ],
)
def test_refused(job: Job, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(job, **options)


def test_plain_texts_have_no_prompts_to_answer(chat_model: Path, text_table: Path) -> None:
    with pytest.raises(UserError, match="text: given student; allowed: data"):
        plan_of((f"hf:{chat_model}", "slice:layers=0", f"csv:{text_table}"), text="student")
