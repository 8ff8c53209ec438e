from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import nn

from limbeck.cache import write_cache
from limbeck.data.loaders import TensorLoader
from limbeck.engine import fit
from limbeck.errors import UserError
from limbeck.language import (
    DataText,
    Decoding,
    OnPolicy,
    Retokenized,
    Retokenizer,
    Revised,
    Reviser,
    SequenceDistiller,
    Sequences,
    answer_logits,
    with_log_probs,
)
from limbeck.losses import forward_kl
from limbeck.objectives import KL, CrossEntropy, DataCrossEntropy, LikelihoodMatching, UniversalLogitDistance
from limbeck.objectives.text import parse_objective
from limbeck.sources import Cached, Live
from limbeck.testbeds.recipe import seeded
from limbeck.tokens import begins_word
from tests.language.test_alignment import texts as some_texts
from tests.models.tiny import full_byte_tokenizer, piece_tokenizer, word_tokenizer

FINE = full_byte_tokenizer(280, some_texts(40, 2))
COARSE = full_byte_tokenizer(500, some_texts(40, 1))
PIECES = piece_tokenizer()


def network(tokenizer: Any, seed: int = 0) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.3, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    made: nn.Module = seeded(lambda: transformers.LlamaForCausalLM(config).eval(), seed)
    return made


def written(tokenizer: Any, prompts: list[str], answers: list[str]) -> Sequences:
    end = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    return Sequences.pad([ids(text) for text in prompts], [[*ids(text), end] for text in answers], pad=end)


def data(tokenizer: Any = FINE, count: int = 6) -> Sequences:
    found = some_texts(2 * count, 5)
    return written(tokenizer, found[:count], found[count:])


def read(side: Sequences, tokenizer: Any, row: int) -> str:
    ids, mask = side.joined()
    return str(tokenizer.decode(ids[row][mask[row]]))


def answer(side: Sequences, tokenizer: Any, row: int) -> str:
    return str(tokenizer.decode(side.answer[row][side.answer_mask[row]][:-1]))


@pytest.mark.parametrize(("student", "teacher"), [(FINE, COARSE), (COARSE, PIECES), (PIECES, FINE)])
def test_the_teacher_reads_the_same_text(student: Any, teacher: Any) -> None:
    given = data(student)
    found = Retokenizer(student, teacher)(given)
    for row in range(len(given)):
        whole = [read(side, tokenizer, row) for side, tokenizer in ((given, student), (found.teacher, teacher))]
        ends = student.eos_token, teacher.eos_token
        assert whole[0].removesuffix(ends[0]).strip() == whole[1].removesuffix(ends[1]).strip()
        assert whole[1].endswith(ends[1])
        ours, theirs = found.student_span[row], found.teacher_span[row]
        assert set(ours.tolist()) - {-1} == set(theirs.tolist()) - {-1}
        # The ends of the two texts are a span of their own.
        last = int(given.lengths[row]) - 1
        assert int((ours == ours[last]).sum()) == int((theirs == ours[last]).sum()) == 1
        assert bool((ours[~given.answer_mask[row]] == -1).all())
    summary = found.report.summary()
    assert found.report.rows == 6
    assert summary["unaligned"] < 0.2
    assert summary["truncated"] == summary["inexact"] == 0


def test_only_spans_whose_tokens_all_count_are_compared() -> None:
    given = data()
    learnt = given.answer_mask.clone()
    learnt[:, 3:6] = False
    part = Sequences.of({**given.columns(), "learnt": learnt})
    whole, found = (Retokenizer(FINE, COARSE)(side) for side in (given, part))
    assert torch.equal(whole.teacher.answer, found.teacher.answer)
    assert bool((found.student_span[:, 3:6] == -1).all())
    assert 0 < found.report.spans < whole.report.spans
    for row in range(len(given)):
        numbers = found.student_span[row][found.student_span[row] >= 0].unique().tolist()
        assert numbers == list(range(len(numbers))), "numbered without holes"


def test_a_truncated_teacher_compares_what_it_sees() -> None:
    given = data()
    whole = Retokenizer(FINE, COARSE)(given)
    limit = int(whole.teacher.prompt_mask.sum(1).min()) + 4
    found = Retokenizer(FINE, COARSE, max_length=limit)(given)
    lengths = found.teacher.prompt_mask.sum(1) + found.teacher.lengths
    assert int(lengths.max()) == limit
    assert found.report.summary()["truncated"] == 1
    assert 0 < found.report.spans < whole.report.spans
    assert found.report.unaligned > whole.report.unaligned


def test_broken_letters_are_not_compared() -> None:
    ids = FINE("a \U0001f98a", add_special_tokens=False).input_ids
    assert "\ufffd" in FINE.decode(ids[:-1]), "the answer ends inside a letter"
    given = Sequences.pad([[5, 6]], [ids[:-1]], pad=0)
    found = Retokenizer(FINE, COARSE)(given)
    assert found.student_span[0, -1] == -1
    assert found.student_span[0, 0] >= 0
    assert found.report.unaligned >= 1


def test_prompts_by_the_teachers_own_template() -> None:
    given = data()
    ids = torch.tensor([[9, 8, 7]] * len(given))
    own = {"teacher_prompt": ids, "teacher_prompt_mask": torch.ones_like(ids, dtype=torch.bool)}
    batch = {"input": {**given.columns(), **own}, "id": torch.arange(6)}
    made = Retokenizer(FINE, COARSE).transform(batch)
    assert made["teacher_input"]["input"]["input_ids"][:, :3].tolist() == ids.tolist()
    found = Retokenizer(FINE, COARSE)(given, Sequences.pad(ids.tolist(), pad=0))
    for row in range(len(given)):
        assert answer(found.teacher, COARSE, row) == answer(given, FINE, row)
    assert torch.equal(made["spans"]["teacher"], found.teacher_span)


def test_a_begin_token_stands_once() -> None:
    made = piece_tokenizer()
    made.add_bos_token = True
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert made("a").input_ids[0] == 1
    found = Retokenizer(FINE, made)(data())
    firsts = [int(row[mask][0]) for row, mask in zip(found.teacher.prompt, found.teacher.prompt_mask)]
    assert firsts == [1] * 6
    given = data(PIECES)
    with_begin = Sequences.pad(
        [[1, *row[mask].tolist()] for row, mask in zip(given.prompt, given.prompt_mask)],
        [row[mask].tolist() for row, mask in zip(given.answer, given.answer_mask)],
        pad=2,
    )
    again = Retokenizer(PIECES, made)(with_begin)
    assert [row[mask].tolist().count(1) for row, mask in zip(again.teacher.prompt, again.teacher.prompt_mask)] == [
        1
    ] * 6


def test_a_student_that_forgets_spaces_is_refused() -> None:
    with pytest.raises(UserError, match="student tokenizer: .*WordPiece"):
        Retokenizer(word_tokenizer(), COARSE)
    student = COARSE
    found = Retokenizer(student, _ended(word_tokenizer()))(data(student))
    assert found.report.summary()["inexact"] == 1


def _ended(tokenizer: Any) -> Any:
    tokenizer.eos_token = "[SEP]"
    return tokenizer


def signals(one: nn.Module, two: nn.Module, given: Sequences, found: Retokenized) -> tuple[Any, Any, dict[str, Any]]:
    batch = {**given.batch(), "id": torch.arange(len(given)), **found.entries()}
    return answer_logits(one, batch), answer_logits(two, found.teacher.batch()), batch


def test_with_one_tokenizer_the_methods_are_what_they_were() -> None:
    given = data(FINE)
    found = Retokenizer(FINE, FINE)(given)
    assert torch.equal(found.student_span, found.teacher_span)
    assert found.report.summary()["one_to_one"] == 1
    one, two = network(FINE).double(), network(FINE, 1).double()
    student, teacher, batch = signals(one, two, given, found)
    mask, target = given.counted, given.answer
    logs = [side["logits"].log_softmax(-1).gather(-1, target[..., None])[..., 0] for side in (student, teacher)]
    coins = [torch.stack([side, torch.log1p(-side.exp())], -1) for side in logs]
    value = LikelihoodMatching(temperature=1.0)(student, teacher, batch)["likelihood_matching"]
    # A byte that is cut by the prompt's border is in no span.
    inside = mask & (found.student_span >= 0)
    torch.testing.assert_close(value, forward_kl(coins[0], coins[1], mask=inside))
    for objective in (LikelihoodMatching(), UniversalLogitDistance()):
        (same,) = objective(student, student, batch).values()
        assert float(same.detach()) == 0
        (other,) = objective(student, teacher, batch).values()
        assert float(other.detach()) > 0


def by_hand(student: Any, teacher: Any, found: Retokenized, given: Sequences, threshold: float, ends: Any) -> float:
    """Likelihood matching with debiasing, span by span, in plain Python."""
    total, count, joined = 0.0, 0, False
    ours, counted = given.answer, (given.counted, found.teacher.counted)
    sides = [side["logits"].log_softmax(-1) for side in (student, teacher)]
    for row in range(len(ours)):
        spans = (found.student_span[row].tolist(), found.teacher_span[row].tolist())
        tokens = (ours[row], found.teacher.answer[row])
        chunk = [0.0, 0.0]
        for span in range(max(spans[0], default=-1) + 1):
            closing, known = [0.0, 0.0], True
            stops = []
            for side in (0, 1):
                where = [place for place, number in enumerate(spans[side]) if number == span]
                chunk[side] += sum(float(sides[side][row, place, tokens[side][place]]) for place in where)
                stops.append(where[-1] + 1)
                known &= stops[side] < len(spans[side]) and bool(counted[side][row, stops[side]])
            if known:
                closing = [
                    float(sides[side][row, stops[side]][torch.tensor(ends[side])].logsumexp(-1)) for side in (0, 1)
                ]
            follows = all(span + 1 in spans[side] and spans[side].index(span + 1) == stops[side] for side in (0, 1))
            if known and follows and torch.tensor(closing[1]).exp() <= threshold:
                joined = True
                continue
            p, q = (torch.tensor((chunk[side] + closing[side]) / 100, dtype=torch.float64) for side in (1, 0))
            heads = p.exp() * (p - q) + (1 - p.exp()) * ((1 - p.exp()).log() - (1 - q.exp()).log())
            total, count, chunk = total + float(heads), count + 1, [0.0, 0.0]
    assert joined, "the threshold must join something"
    return total / count


def test_outcome_debiasing_against_a_loop() -> None:
    given = data()
    found = Retokenizer(FINE, COARSE)(given)
    student, teacher, batch = signals(network(FINE).double(), network(COARSE, 1).double(), given, found)
    ends = begins_word(FINE), begins_word(COARSE)
    objective = LikelihoodMatching(ends=ends, threshold=0.15)
    value = objective(student, teacher, batch)["likelihood_matching"]
    assert float(value.detach()) == pytest.approx(by_hand(student, teacher, found, given, 0.15, ends), rel=1e-9)
    plain = LikelihoodMatching()(student, teacher, batch)["likelihood_matching"]
    assert float(plain.detach()) != pytest.approx(float(value.detach()))


def test_a_mismatch_never_trains_quietly() -> None:
    given = data()
    found = Retokenizer(FINE, COARSE)(given)
    student, teacher, batch = signals(network(FINE), network(COARSE), given, found)
    for objective in (LikelihoodMatching(), UniversalLogitDistance()):
        with pytest.raises(UserError, match="teacher signal: given positions"):
            objective(student, {"logits": teacher["logits"][:, 1:]}, batch)
        with pytest.raises(UserError, match="one with spans"):
            objective(student, teacher, given.batch())
        lost = {**batch, "spans": {**batch["spans"], "teacher": torch.full_like(found.teacher_span, -1)}}
        with pytest.raises(UserError, match="the same spans on both sides"):
            objective(student, teacher, lost)
        with pytest.raises(UserError, match="no retokenizer"):
            SequenceDistiller(network(FINE), objective, network(FINE, 1))
    with pytest.raises(UserError, match="objective KL: given a teacher of another tokenizer"):
        SequenceDistiller(network(FINE), CrossEntropy() + KL(), network(COARSE), retokenizer=Retokenizer(FINE, COARSE))
    decoding = Decoding(5, FINE.eos_token_id, FINE.eos_token_id)
    with pytest.raises(UserError, match="writer: given Revised"):
        SequenceDistiller(
            network(FINE), LikelihoodMatching(), network(COARSE), retokenizer=Retokenizer(FINE, COARSE),
            writer=Revised(DataText(), Reviser(decoding)),
        )  # fmt: skip
    with pytest.raises(UserError, match="another vocabulary"):
        SequenceDistiller(network(FINE), KL(), network(COARSE), tokenizers=(FINE, COARSE))


def loader() -> TensorLoader:
    return TensorLoader({"input": data(FINE, 8).columns()}, 4, seed=1)


@pytest.mark.parametrize("on_policy", [False, True], ids=["data", "on_policy"])
def test_training_across_tokenizers_learns(on_policy: bool) -> None:
    text = "data + 0.5 * likelihood_matching(temperature=10) + universal_logit_distance"
    objective = DataCrossEntropy() + parse_objective(text.removeprefix("data + "))
    writer = OnPolicy(Decoding(8, FINE.eos_token_id, FINE.eos_token_id)) if on_policy else None
    one = SequenceDistiller(
        network(FINE), objective, network(COARSE, 1), retokenizer=Retokenizer(FINE, COARSE), writer=writer
    )
    history = fit(one, loader(), steps=12, accelerator="cpu", log_every=1)
    assert {"likelihood_matching", "universal_logit_distance", "spans/one_to_one", "spans/unaligned"} <= set(
        history.names()
    )
    if not on_policy:
        curve = history.curve("universal_logit_distance")["y"]
        assert sum(curve[-3:]) < sum(curve[:3])


def test_a_cache_holds_the_teachers_own_tokens(tmp_path: Path) -> None:
    retokenizer, teacher = Retokenizer(FINE, COARSE), network(COARSE, 1)
    batches = [retokenizer.teacher_batch(batch) for batch in loader()]
    source = Live(teacher, forward=with_log_probs(answer_logits))
    write_cache(source, batches, tmp_path, needs=["log_probs"], codec="float32", ragged=["log_probs"])
    objective = LikelihoodMatching(teacher="log_probs")
    values = {}
    for name, signal in {"live": source, "cached": Cached(tmp_path)}.items():
        one = SequenceDistiller(network(FINE), objective, signal, retokenizer=retokenizer)
        batch = one.plain(next(iter(loader())))
        values[name] = objective(one.student_signals(batch), one.teacher_signals(batch), batch)["likelihood_matching"]
    assert float(values["live"].detach()) > 0
    assert torch.equal(values["live"], values["cached"])
    whole = LikelihoodMatching()
    batch = one.plain(next(iter(loader())))
    want = whole(one.student_signals(batch), answer_logits(teacher, batch["teacher_input"]), batch)
    torch.testing.assert_close(values["live"], want["likelihood_matching"])
