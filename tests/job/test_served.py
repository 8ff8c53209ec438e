"""A teacher that is behind a server alone: no folder of its weights is here."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.job.finished import measure_again
from limbeck.job.plan import Plan, make_plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.teacher_texts import write_teacher_texts
from limbeck.job.teachers import teaching
from limbeck.servers import ServerRefused, TokenTexts
from limbeck.signals import SparseLogits
from tests.job.helpers import COMMON, plan_of
from tests.models.tiny import chat_tokenizer, save_chat_llama
from tests.servers import imitation
from tests.servers.imitation import NAME, Server, serving

pytestmark = pytest.mark.usefixtures("quick")
# The tokens of the imitation are small.
SHORT: dict[str, Any] = {"max_length": 100, "answers": 0, "teacher_precision": "auto"}
TEXTS = {"text": "teacher", "decoding": {"length": 5}}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with the tokens of the imitation's, and a chat template."""
    tokenizer = copy.deepcopy(imitation.tokenizer())
    tokenizer.chat_template = chat_tokenizer().chat_template
    return f"hf:{save_chat_llama(tmp_path_factory.mktemp('student'), 2, 7, tokenizer)}"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("vllm") as one:
        yield one


def address(server: Server, **options: Any) -> str:
    return ",".join([f"server:{server.url}", f"model={NAME}", *(f"{name}={value}" for name, value in options.items())])


def served(teacher: str, student: str, chat_table: Path, **options: Any) -> Plan:
    return plan_of((teacher, student, f"parquet:{chat_table}"), **SHORT, **options)


def test_signals_alone_name_the_teacher(student: str, server: Server, chat_table: Path, tmp_path: Path) -> None:
    words = ["distill", "--task", "causal-lm", "--student", student, "--data", f"parquet:{chat_table}", "--epochs", "2"]
    words += ["--signals", address(server, top=20), "--max-length", "100", "--answers", "0", "--batch-size", "8"]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out), "--objective", "kl"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert list(result["models"]) == ["student without distillation", "student"]
    assert result["models"]["student"]["perplexity"] > 1
    assert "kl" not in result["models"]["student"]
    assert any("behind a server" in note for note in result["notes"])
    assert "against the teacher" not in (out / "student" / "README.md").read_text()
    assert 0 < result["curves"]["kl"]["y"][-1] < 10
    server.stop()
    again = measure_again(out)["models"]
    assert again["student"]["perplexity"] == pytest.approx(result["models"]["student"]["perplexity"], rel=1e-4)
    assert main([*words, "--out", str(out), "--objective", "kl", "--resume"]) == 0, "a finished run needs no server"


def test_its_signals_are_the_models(student: str, server: Server, chat_table: Path) -> None:
    plan = served(address(server, top=20), student, chat_table)
    assert plan.language is not None
    batch = next(iter(plan.language.loader("train", 3, ready=True)))
    with teaching(plan) as live:
        found = live(batch, ("logits",))["logits"]
    assert isinstance(found, SparseLogits)
    with torch.no_grad():
        whole = plan.language.forward(whole=True)(imitation.model(), batch)["logits"].log_softmax(-1)
    mask = batch["mask"]
    torch.testing.assert_close(found.values[mask], whole.gather(-1, found.indices)[mask], rtol=0, atol=1e-3)


def test_a_cache_of_a_server_serves_a_training_without_it(
    student: str, server: Server, chat_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--task", "causal-lm", "--data", f"parquet:{chat_table}", "--max-length", "100"]
    words = ["cache", *common, "--out", str(tmp_path / "cache"), "--teacher"]
    assert main([*words, address(server)]) == 2
    assert "allowed: server:URL,model=NAME,tokenizer=hf:FOLDER" in capsys.readouterr().err
    assert main([*words, address(server, tokenizer=student, top=20)]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_per_token"] < 100
    before = len(server.asked)
    words = ["distill", *common, "--student", student, "--teacher", address(server, top=20), "--epochs", "1"]
    words += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--answers", "0"]
    assert main([*words, "--baseline", "none"]) == 0
    assert len(server.asked) < before + 8, "the probe, and the few samples of the first check"


def test_it_writes_the_texts_once(
    student: str, server: Server, chat_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = (student, f"parquet:{chat_table}"), tmp_path / "out"
    options = {**COMMON, **SHORT, **TEXTS, "objective": "cross_entropy", "baseline": "none", "quiet": True}

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    server.faults = [None] * 12 + [cut]
    # The request fails, and would be made again: the run is cut there.
    monkeypatch.setattr("limbeck.servers.connection._TRIES_OF_500", 1)
    with pytest.raises(Exception, match="gave no answer"):
        limbeck.distill(address(server, top=5, concurrency=1, patience=0), *given, out, **options)
    lines = (out / "texts.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 8
    limbeck.distill(address(server, top=5), *given, out, **options)
    written = (out / "texts.jsonl").read_text().splitlines()
    assert written[: len(lines)] == lines
    plan = served(address(server, top=20), student, chat_table, **TEXTS)
    before = len(server.asked)
    with teaching(plan) as live:
        write_teacher_texts(plan, out, live, Progress(quiet=True))
    assert plan.language is not None
    assert plan.language.written is not None
    assert len(written) == 1 + len(plan.language.written)
    assert not any("return_token_ids" in one for one in server.asked[before + 2 :]), "nothing is written again"
    told = {line["id"]: line["answer"] for line in map(json.loads, written[1:])}
    for number, one in zip(plan.language.written.id.tolist(), plan.language.written.input):
        assert one.ids[one.learnt].tolist() == told[number]
    with serving("vllm", seed=1) as other:
        plan = served(address(other, top=20), student, chat_table, **TEXTS)
        with teaching(plan) as live, pytest.raises(UserError, match="texts.jsonl, of another generator"):
            write_teacher_texts(plan, out, live, Progress(quiet=True))


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """Conversations, of which one in eight has a number that :func:`imitation.splits_numbers` reads otherwise."""
    rows = [
        {"prompt": f"what does {'12 ' if number % 8 == 0 else ''}{chr(97 + number // 8)} {chr(97 + number % 8)}"}
        for number in range(60)
    ]
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps({**row, "completion": "it sits"}) + "\n" for row in rows))
    return f"jsonl:{path}"


def test_texts_that_the_server_reads_otherwise_are_left_out_and_counted(
    student: str, numbers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--task", "causal-lm", "--data", numbers, "--max-length", "100"]
    train = ["--student", student, "--epochs", "1", "--answers", "0", "--baseline", "none"]
    with serving("llama-cpp", tokenizer=imitation.splits_numbers()) as server:
        known = address(server, top=20, tokenizer=student)
        cache = ["cache", *common, "--out", str(tmp_path / "cache"), "--teacher"]
        assert main([*cache, known]) == 0
        told = json.loads(capsys.readouterr().out)
        count, asked = told["left_out"], told["samples"]
        assert 0 < count < asked / 5
        assert main(["cache", "show", str(tmp_path / "cache")]) == 0
        assert json.loads(capsys.readouterr().out)["left_out"] == count
        words = ["distill", *common, *train, "--teacher", known]
        assert main([*words, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "cached")]) == 0
        assert main([*words, "--out", str(tmp_path / "live")]) == 0
        words += ["--text", "teacher", "--decoding", "length=3", "--objective", "cross_entropy"]
        assert main([*words, "--out", str(tmp_path / "written")]) == 0
        capsys.readouterr()
        assert main([*cache, f"{known},unread=0.05"]) == 2
        expected = f"reads {count} of {asked} texts in other tokens than the tokenizer, more than 5%"
        assert expected in capsys.readouterr().err
    found = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("cached", "live", "written")}
    assert found["cached"]["manifest"]["texts left out"] == f"{count} of {asked}"
    assert any(f"{count} of {asked} texts" in note for note in found["cached"]["notes"])
    assert found["live"]["manifest"]["texts left out"].split()[0] != "0"
    assert found["written"]["manifest"]["prompts left out"] == f"{count} of {asked}"
    losses = [found[name]["models"]["student"]["perplexity"] for name in ("cached", "live")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_texts_are_cut_where_a_server_reads_the_same_tokens(student: str, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text("".join(json.dumps({"text": f"the cat {n} \u4e2d\u6587" * 4}) + "\n" for n in range(20)))
    given = (student, f"jsonl:{path}")
    whole = plan_of((student, *given), **{**SHORT, "max_length": 21})
    plan = plan_of((address(server), *given), **{**SHORT, "max_length": 21})
    assert whole.language is not None
    assert plan.language is not None
    texts = TokenTexts(plan.student.tokenizer)
    before, after = whole.language.splits.train.input, plan.language.splits.train.input
    assert any(texts.text_of(one.ids.tolist()) is None for one in before)
    assert all(texts.text_of(one.ids.tolist()) is not None for one in after)
    for one, other in zip(before, after, strict=True):
        cut = len(one) - len(other)
        assert 0 <= cut < 5
        assert other.lost == one.lost + cut
        assert other.ids.tolist() == one.ids[: len(other)].tolist()
        assert other.learnt.tolist() == one.learnt[: len(other)].tolist()
    assert [len(one) for one in plan.language.splits.test.input] == [
        len(one) for one in whole.language.splits.test.input
    ]


def test_a_template_of_the_reference(server: Server, student: str, chat_table: Path, tmp_path: Path) -> None:
    bare = f"hf:{save_chat_llama(tmp_path / 'bare', 2, 7, imitation.tokenizer())}"
    with pytest.raises(UserError, match="template"):
        served(address(server), bare, chat_table)
    plan = served(address(server, tokenizer=student), bare, chat_table)
    assert plan.student.tokenizer.chat_template is not None
    plan.student.save(tmp_path / "saved")
    assert "assistant" in json.dumps([path.read_text() for path in (tmp_path / "saved").glob("*.j*n*")])
    other = f"hf:{save_chat_llama(tmp_path / 'other', 2, 7, chat_tokenizer(size=266))}"
    with pytest.raises(UserError, match="student tokenizer: given another vocabulary"):
        served(address(server, tokenizer=student), other, chat_table)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama-cpp"])
def test_a_student_of_other_tokens_is_refused_by_the_probe(kind: str, chat_table: Path, tmp_path: Path) -> None:
    other = f"hf:{save_chat_llama(tmp_path, 2, 7, chat_tokenizer(size=300))}"
    with serving(kind) as server:
        plan = served(address(server, top=20), other, chat_table)
        with pytest.raises(ServerRefused, match="tokenizer"), teaching(plan):
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": "slice:layers=0"}, "student: given slice:layers=0; allowed: a network of its own"),
        ({"signals": "hidden"}, "signals: given hidden; allowed: live or cache"),
        ({"signals": "server:http://b,model=x"}, "allowed: live or cache, with a teacher behind a server"),
        ({"teacher": "server:http://a,model=x,k=5"}, "teacher option: given k"),
        ({"teacher": "server:http://a"}, "model's name is missing"),
        ({"teacher": '["server:http://a,model=x", "hf:b"]'}, "one, where it is behind a server"),
        ({"teacher_precision": "bfloat16"}, "teacher_precision: given bfloat16; allowed: auto"),
        ({"objective": "likelihood_matching"}, "objective: given likelihood_matching"),
    ],
)
def test_refused(student: str, chat_table: Path, options: dict[str, Any], message: str) -> None:
    given = {"teacher": "server:http://a,model=x", "student": student, **COMMON, **SHORT, **options}
    with pytest.raises(UserError, match=message):
        make_plan(Settings(data=f"parquet:{chat_table}", out="unused", **given))


def test_other_tasks_need_a_network(text_classifier: Path, text_table: Path) -> None:
    with pytest.raises(UserError, match="servers are for causal-lm"):
        make_plan(Settings("server:http://a,model=x", f"hf:{text_classifier}", f"csv:{text_table}", "unused"))
