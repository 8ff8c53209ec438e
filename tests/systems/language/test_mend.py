"""MEND: its two losses, its stages, and the experiment's parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from limbeck.data.loaders import TensorLoader
from limbeck.engine import run_program
from limbeck.errors import UserError
from limbeck.experiment.base import load_experiment
from limbeck.language import BehindPrefix, InContext, Prefix, full_context_logits, in_context_batch
from limbeck.signals import SparseLogits
from limbeck.sources import Live, Source, Table
from limbeck.systems.language.mend.arms import Way
from limbeck.systems.language.mend.method import DemonstrationClassifier, compressor, finetuning, mend, pretraining
from limbeck.systems.language.mend.smollm2 import Predicted, as_contexts
from limbeck.systems.language.mend.word_languages import WordLanguages, demonstrations, shortened

WHERE = "limbeck.systems.language.mend.experiment"


def llama(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=width, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def episodes() -> InContext:
    return InContext.pad([[5, 6, 7, 8], [9, 10]], [[3, 4], [4, 5, 6]], [1, 2], pad=0)


def test_stage_one_is_the_mean_divergence_over_all_tokens_of_the_text_and_stage_two_adds_the_answers() -> None:
    model, small = llama(16), compressor(llama(16), llama(8, 1), 3)
    given = episodes()
    batch = {**given.batch(), "id": torch.arange(2)}
    student, teacher = BehindPrefix(model)(small, batch), full_context_logits(model, batch)
    terms = finetuning(kl_weight=0.5)(student, teacher, batch)

    prefix = small(given.context, given.context_mask)
    divergences, losses = [], []
    for row, (context, text, answers) in enumerate(([[5, 6, 7, 8], [3, 4], 1], [[9, 10], [4, 5, 6], 2])):
        wanted = model(torch.tensor([[*context, *text]])).logits[0, len(context) :].log_softmax(-1)
        embedded = model.get_input_embeddings()(torch.tensor([text]))  # type: ignore[operator]
        found = model(inputs_embeds=torch.cat([prefix.vectors[row : row + 1], embedded], 1)).logits[0, 3:]
        divergences += (wanted.exp() * (wanted - found.log_softmax(-1))).sum(-1).tolist()
        losses += functional.cross_entropy(
            found[-answers - 1 : -1], torch.tensor(text[-answers:]), reduction="none"
        ).tolist()
    assert len(divergences) == 5, "every token of the text, the first included"
    torch.testing.assert_close(float(terms["kl"]), 0.5 * sum(divergences) / 5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(float(terms["cross_entropy"]), sum(losses) / 3, atol=1e-5, rtol=1e-4)
    assert set(pretraining()(student, teacher, batch)) == {"kl"}


def test_both_stages_train_the_compressor_and_nothing_else_and_a_cache_serves_as_well() -> None:
    model = llama(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = episodes()
    said = Live(model, forward=full_context_logits)(given.batch(), ("logits", "counted"))
    ends = []
    for teachers in ((None, None), (Table(torch.arange(2), said),) * 2):
        small = compressor(model, llama(8, 1), 3, seed=0)
        loader = TensorLoader({"input": given.columns()}, 2, transform=in_context_batch)
        stages = mend(model, loader, loader, steps=(6, 6), rates=(1e-2, 1e-2), teachers=teachers)
        history = run_program(small, stages, accelerator="cpu", log_every=1)
        curve = history["pretraining"].curve("kl")["y"]
        assert curve[-1] < curve[0]
        assert set(history["finetuning"].names()) >= {"kl", "cross_entropy"}
        ends.append(history["finetuning"].curve("loss")["y"][-1])
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_stage_may_be_left_out_and_an_objective_without_a_teacher_has_none() -> None:
    from limbeck.objectives import CrossEntropy

    loader = TensorLoader({"input": episodes().columns()}, 2, transform=in_context_batch)
    stages = mend(llama(16), None, loader, second=CrossEntropy())
    assert [(stage.name, stage.teacher, stage.steps) for stage in stages] == [("finetuning", None, 30_000)]


def test_the_classifier_reads_its_demonstrations_once_and_reports_what_did_not_fit() -> None:
    model = llama(16)
    task = DemonstrationClassifier(model, compressor(model, llama(8, 1), 3, limit=5), [[1], [2, 3]], pad=0)
    task.fit([[5, 6, 1], [7, 8, 1], [9, 2]])
    assert task.left_out_ == 1
    assert isinstance(task.prefix_, Prefix)
    assert set(task.predict([[5], [6, 7]])) <= {0, 1}
    assert not bool(task.fit([]).prefix_.mask.any()), "no demonstrations: an empty prefix"
    assert len(task.predict([[5]])) == 1


def test_few_demonstrations_are_whole_lines_of_the_episode() -> None:
    context = list(b"abc A\nde B\nfg A\nhij B\n")
    assert [bytes(line) for line in demonstrations(context)] == [b"abc A\n", b"de B\n", b"fg A\n", b"hij B\n"]
    given = InContext.pad([context], [list(b"kl A")], [1], pad=0)
    names = torch.tensor([[66, 65]])
    seen = set()
    for seed in range(20):
        view = torch.tensor([seed])
        lines = demonstrations(cut(shortened(given, Way("tokens", shots=2, balanced=True), names, view)))
        assert [line[-2] for line in lines] == [66, 65]
        two = demonstrations(cut(shortened(given, Way("tokens", shots=2), names, view)))
        assert len(two) == 2
        seen.add(tuple(map(bytes, two)))
    assert len(seen) > 5
    assert shortened(given, Way("tokens"), names, torch.tensor([0])) is given


def cut(given: InContext) -> list[int]:
    found: list[int] = given.context[0][given.context_mask[0]].tolist()
    return found


def test_a_cache_of_predictions_meets_the_students_tokens_one_column_on() -> None:
    from limbeck.data.split import Split
    from limbeck.language import Sequences

    answers = Sequences.pad([[5, 6], [7, 8]], [[1, 2, 3], [4, 5, 6]], pad=0)
    split = as_contexts(Split(answers.columns(), None, torch.arange(2)))
    assert split.input["text"].tolist() == [[1, 2], [4, 5]]  # type: ignore[index,call-overload]
    logits = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))

    class Kept(Source):
        def __call__(self, batch: Any, needs: Any = ()) -> Any:
            return {"logits": SparseLogits.from_dense(logits, 4)}

        def fingerprint(self) -> str:
            return ""

    source = Predicted(Kept())
    found: Any = source({"input": split.input, "id": split.id})
    assert found["counted"].tolist() == [[False, True, True]] * 2
    student = {"logits": logits[:, 1:], "counted": torch.ones(2, 2, dtype=torch.bool)}
    assert float(pretraining()(student, found, {"id": split.id})["kl"]) < 1e-5
    wrong = {"logits": logits[:, :2], "counted": student["counted"]}
    assert float(pretraining()(wrong, found, {"id": split.id})["kl"]) > 0.1


def test_contexts_beyond_the_published_limit_are_refused() -> None:
    small = compressor(llama(16), llama(8, 1), 3)
    with pytest.raises(UserError, match="at most 900"):
        small(torch.ones(1, 901, dtype=torch.int64), torch.ones(1, 901, dtype=torch.bool))


def test_arms_differ_as_they_say_and_cost_what_they_say() -> None:
    found = load_experiment(f"{WHERE}:word_languages", "smoke")
    assert isinstance(found, WordLanguages)
    found.prepare()
    full, none, two, method = (found.run(arm, 0).metrics for arm in ("icl", "zero-shot", "demos-2", "mend"))
    assert full["agreement"] == 1.0
    assert full["kl"] < 1e-5
    assert full["position_share"] == full["flops_share"] == 1.0
    assert none["position_share"] < two["position_share"] < 1.0
    assert method["position_share"] == found.run("prompt", 0).metrics["position_share"]
    lengths = load_experiment(f"{WHERE}:lengths", "smoke")
    assert lengths.run("mend-2", 0).metrics["position_share"] < method["position_share"]
