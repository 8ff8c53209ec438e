"""LLMLingua-2: annotation, training and compression; each pitfall of the released scripts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers

from limbeck.data.word_spans import split_spans
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.errors import UserError
from limbeck.language.compressors import Known
from limbeck.models.token_classifier import TokenClassifier
from limbeck.models.word_pieces import word_pieces
from limbeck.systems.language.llmlingua2.experiment import EXPERIMENTS, HumanTeacher, SaliencyTeacher
from limbeck.systems.language.llmlingua2.method import LLMLingua2, Recipe

# What a word means for the label depends on the word before it.
TEXTS = [f"keep {a} and drop {b} now" for a in "abcdef" for b in "abcdef" if a != b]
SHORT = {text: f"keep {text.split()[1]} now" for text in TEXTS}


def student(seed: int = 0, *, causal: bool = False) -> TokenClassifier:
    tokenizer = word_pieces([*TEXTS, "line 2 ?"], 60)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return TokenClassifier.on(transformers.BertModel(config), tokenizer, causal=causal)


def method(**options: Any) -> LLMLingua2:
    recipe = Recipe(epochs=12, batch_size=10, optimizer=OptimizerSettings("adam", 1e-2, schedule="linear"))
    given = {"teacher": Known(SHORT), "recipe": recipe, "accelerator": "cpu", **options}
    return LLMLingua2(student(), **given)


@pytest.fixture(scope="module")
def trained() -> LLMLingua2:
    return method().fit(TEXTS)


def test_it_learns_from_context_what_the_teacher_keeps(trained: LLMLingua2) -> None:
    assert trained.transform(TEXTS) == [SHORT[text] for text in TEXTS]


def test_the_loss_is_the_mean_over_sub_words_with_a_label() -> None:
    """Neither padding nor special tokens are in it, and no label has moved: computed here text by text."""
    made = method(recipe=Recipe(epochs=1, batch_size=10**3, optimizer=OptimizerSettings("adam", 1e-9)), log_every=1)
    texts = [*TEXTS[:3], "keep a"]
    made.teacher = Known({**SHORT, "keep a": "a"})
    made.variation = made.gap = None
    twin = student()
    made.fit(texts)
    total, count = 0.0, 0
    for text in texts:
        words = text.split()
        wanted = (SHORT.get(text) or "a").split()
        pieces = [twin.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        ids = [twin.tokenizer.cls_token_id, *functools.reduce(operator.iadd, pieces, []), twin.tokenizer.sep_token_id]
        with torch.no_grad():
            logits = twin(torch.tensor([ids]))["logits"][0, 1:-1].double().log_softmax(-1)
        labels = [int(word in wanted) for word, row in zip(words, pieces) for _ in row]
        total -= float(logits[range(len(labels)), labels].sum())
        count += len(labels)
    assert made.history_.lines[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_answers_that_are_not_the_texts_words_are_left_out() -> None:
    invented = {**SHORT, TEXTS[0]: "something else entirely", TEXTS[1]: ""}
    found = method(teacher=Known(invented)).annotate(TEXTS)
    assert found.trusted == list(range(2, len(TEXTS)))
    everything = method(teacher=Known(invented), variation=None, gap=None).annotate(TEXTS)
    assert everything.trusted == [0, *range(2, len(TEXTS))], "an empty answer is no answer"
    with pytest.raises(UserError, match="usable"):
        method(teacher=Known(dict.fromkeys(TEXTS, ""))).fit(TEXTS)
    with pytest.raises(UserError, match="teacher"):
        LLMLingua2(student()).fit(TEXTS)


def test_a_compressed_text_has_words_of_the_text_in_their_order(trained: LLMLingua2) -> None:
    for rate in (0.0, 0.2, 0.5, 0.9, 1.0):
        made = LLMLingua2(trained.student, rate=rate)
        for text in TEXTS[:5]:
            words, short = [w.text for w in split_spans(text)], made.compress(text).split()
            places = iter(words)
            assert all(word in places for word in short)
            assert len(short) == int(rate * len(words) + 0.5)
    assert LLMLingua2(trained.student).compress("") == ""


def test_forced_words_lines_and_costs(trained: LLMLingua2) -> None:
    text = "drop a\n\n\nand drop b 2 now?"
    made = LLMLingua2(trained.student, rate=0.0, forced={"\n", "?", "not there"}, digits=True, drop_repeats=True)
    assert made.compress(text) == "\n2 ?"
    dear = LLMLingua2(trained.student, rate=0.5, cost=lambda word: 10 if word == "keep" else 1)
    assert "keep" not in dear.compress(TEXTS[0]).split(), "it costs more than half of the text"


def test_contexts_share_one_budget(trained: LLMLingua2) -> None:
    contexts = ["drop a drop b drop c", "keep a keep b keep c", "drop d and drop e and"]
    made = LLMLingua2(trained.student, rate=0.3)
    found = made.compress_contexts(contexts)
    assert sum(len(text.split()) for text in found) == 5, "0.3 of 18, rounded"
    assert found[1]
    assert "" in found, "a whole document went"
    kept = made.compress_contexts(contexts, context_rate=0.4, forced=(2,))
    assert kept[2]
    assert kept[0] == ""
    assert sum(len(text.split()) for text in kept) == 5


def test_training_is_a_function_of_its_seed() -> None:
    recipe = Recipe(epochs=1, batch_size=10, optimizer=OptimizerSettings("adam", 1e-2))
    first, again, other = (method(recipe=recipe, seed=seed).fit(TEXTS).word_scores(TEXTS[:1])[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.fixture(scope="module")
def experiments() -> Mapping[str, Any]:
    return {name: kind("smoke") for name, kind in EXPERIMENTS.items()}


def test_rivals_do_not_lose_by_commas_and_teachers_are_what_they_say(experiments: Mapping[str, Any]) -> None:
    found: SaliencyTeacher = experiments["saliency"]
    texts = list(found.bed.part("test").input)
    for name, rule in found.rules(0).items():
        for text, row in zip(texts, rule(texts)):
            words = split_spans(text)
            assert len(row) == len(words), name
            spoken = [float(score) for word, score in zip(words, row) if word.spoken]
            others = [float(score) for word, score in zip(words, row) if not word.spoken]
            # The first words are what they are, and the teacher's saliency may round to 0.
            assert name in ("first", "teacher") or not others or min(spoken) > max(others), name


def test_controls_differ_from_the_method_in_the_teacher_alone(experiments: Mapping[str, Any]) -> None:
    human: HumanTeacher = experiments["human"]
    arms = human.arms
    own, other = (human.teacher(arms[name].setting, 0) for name in ("student", "shuffled"))
    texts = list(human.texts.input)
    summaries = human.bed.summaries(human.texts)
    assert [own(text) for text in texts] == summaries
    assert sorted(other(text) for text in texts) == sorted(summaries)
    assert all(own(text) != other(text) for text in texts)
    saliency: SaliencyTeacher = experiments["saliency"]
    own, other = (saliency.teacher(saliency.arms[name].setting, 0) for name in ("student", "shuffled"))
    for text in saliency.texts.input:
        assert len(split_spans(own(text))) == len(split_spans(other(text)))  # type: ignore[arg-type]
    assert any(own(text) != other(text) for text in saliency.texts.input)  # type: ignore[arg-type]
