"""Texts behind contexts and behind vectors: positions, masks, padding, bad input."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.language import (
    InContext,
    Prefix,
    full_context_logits,
    grouped,
    in_context_batch,
    pack_demonstrations,
    prefixed_logits,
)

CONTEXTS, TEXTS = [[5, 6, 7, 8], [9], []], [[3, 4], [4, 5, 6], [7, 8, 9]]


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1)
    return transformers.GPT2LMHeadModel(config).eval()


def opt() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=12, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=32, dropout=0.0,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


MODELS = pytest.mark.parametrize("build", [llama, gpt2, opt])


def given() -> InContext:
    return InContext.pad(CONTEXTS, TEXTS, [1, 1, 2], pad=0)


@MODELS
def test_logits_are_those_of_every_row_alone(build: Any) -> None:
    model, batch = build(), given()
    with torch.no_grad():
        found = full_context_logits(model, batch.batch())
        for row, (context, text) in enumerate(zip(CONTEXTS, TEXTS)):
            alone = model(torch.tensor([[*context, *text]])).logits[0, len(context) :]
            torch.testing.assert_close(found["logits"][row, : len(text)], alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(found["counted"], batch.text_mask)


@MODELS
def test_a_context_of_several_rows_is_read_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    batch = InContext.pad(
        [[5, 6, 7, 8], [9, 4], [5, 6, 7, 8], [5, 6, 7, 8]], [[3, 4], [4, 5, 6], [7, 8, 9], [2]], pad=0
    )
    widths: list[tuple[int, int]] = []
    forward = model.forward

    def counted(*given: Any, **options: Any) -> Any:
        widths.append(tuple(options["input_ids"].shape))
        return forward(*given, **options)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", counted)
    with torch.no_grad():
        found = full_context_logits(model, batch.batch())["logits"]
        assert widths == [(2, 4), (4, 3)]
        for row in range(4):
            alone = full_context_logits(model, batch.select(torch.tensor([row])).batch())["logits"][0]
            mask = batch.text_mask[row]
            torch.testing.assert_close(found[row][mask], alone[mask], atol=1e-5, rtol=1e-4)


@MODELS
def test_a_prefix_of_the_contexts_own_embeddings_is_the_context(build: Any) -> None:
    model, batch = build(), given()
    with torch.no_grad():
        wanted = full_context_logits(model, batch.batch())["logits"]
        prefix = Prefix(model.get_input_embeddings()(batch.context), batch.context_mask)
        found = prefixed_logits(model, prefix, batch.text, batch.text_mask)
    torch.testing.assert_close(found[batch.text_mask], wanted[batch.text_mask], atol=1e-5, rtol=1e-4)


def test_padding_on_either_side_and_in_between_moves_nothing() -> None:
    model, batch = llama(), given()
    # Columns of garbage in front, between and behind.
    place = torch.tensor([1, 3, 4, 6])
    context = torch.full((3, 8), 11).index_copy(1, place, batch.context)
    mask = torch.zeros(3, 8, dtype=torch.bool).index_copy(1, place, batch.context_mask)
    with torch.no_grad():
        wanted = full_context_logits(model, batch.batch())["logits"][batch.text_mask]
        moved = full_context_logits(model, replace(batch, context=context, context_mask=mask).batch())["logits"]
    torch.testing.assert_close(moved[batch.text_mask], wanted, atol=1e-5, rtol=1e-4)


@MODELS
def test_an_empty_prefix_is_zero_shot(build: Any) -> None:
    model, batch = build(), given()
    bare = batch.without_context()
    nothing = Prefix(torch.randn(3, 2, 16), torch.zeros(3, 2, dtype=torch.bool))
    with torch.no_grad():
        wanted = full_context_logits(model, bare.batch())["logits"]
        found = prefixed_logits(model, nothing, batch.text, batch.text_mask)
    torch.testing.assert_close(found[batch.text_mask], wanted[batch.text_mask], atol=1e-5, rtol=1e-4)


def test_targets_are_the_answers_tokens_in_the_columns_that_predict_them() -> None:
    batch = given().batch()
    assert batch["target"][batch["mask"]].tolist() == [4, 6, 8, 9]
    assert batch["mask"].sum(1).tolist() == [1, 1, 2]
    loaded = in_context_batch({"input": given().columns(), "id": torch.arange(3), "view": torch.arange(3)})
    assert torch.equal(loaded["target"], batch["target"])
    assert "view" not in loaded


def test_columns_of_padding_go() -> None:
    batch = InContext.pad([[1], [2]], [[3, 4], [5]], pad=0)
    wide = InContext(
        *(torch.nn.functional.pad(getattr(batch, name), (0, 2)) for name in ("context", "context_mask", "text")),
        torch.nn.functional.pad(batch.text_mask, (0, 2)), torch.nn.functional.pad(batch.answer, (0, 2)),
    )  # fmt: skip
    for name, value in wide.trimmed().columns().items():
        assert torch.equal(value, batch.columns()[name]), name


def test_whole_demonstrations_within_the_limit() -> None:
    demonstrations = [[1, 1, 1], [2, 2], [3]]
    assert pack_demonstrations(demonstrations) == ([1, 1, 1, 2, 2, 3], 0)
    assert pack_demonstrations(demonstrations, 5) == ([2, 2, 3], 1)
    assert pack_demonstrations(demonstrations, 0) == ([], 3)
    assert pack_demonstrations([], 5) == ([], 0)


def test_a_prefix_is_kept_in_a_file(tmp_path: Path) -> None:
    prefix = Prefix(torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool))
    prefix.save(tmp_path / "task.safetensors")
    found = Prefix.load(tmp_path / "task.safetensors").repeat(3)
    assert torch.equal(found.vectors, prefix.vectors.expand(3, -1, -1))
    with pytest.raises(UserError, match="rows"):
        found.repeat(2)


def test_bad_batches_are_refused() -> None:
    batch = given()
    with pytest.raises(UserError, match="input"):
        InContext.of({"text": batch.text})
    with pytest.raises(UserError, match="text"):
        replace(batch, text_mask=batch.text_mask.flip(1))
    with pytest.raises(UserError, match="context"):
        replace(batch, context_mask=batch.context_mask.long())
    with pytest.raises(UserError, match="answer"):
        replace(batch, answer=torch.ones_like(batch.answer))
    with pytest.raises(UserError, match="width"):
        prefixed_logits(llama(), Prefix(torch.zeros(1, 2, 9), torch.ones(1, 2).bool()), batch.text, batch.text_mask)


def test_groups_with_one_context_stay_together_and_are_taken_apart() -> None:
    made = InContext.pad([[5, 6], [5, 6], [7], [7]], [[1, 2], [3], [4, 5], [6]], [1, 0, 1, 0], pad=0)
    split = Split(made.columns(), None, torch.arange(10, 14))
    loader = TensorLoader(grouped(split, 2), 1, seed=3, transform=in_context_batch)
    batches = list(loader)
    assert sorted(batch["id"].tolist() for batch in batches) == [[10, 11], [12, 13]]
    for batch in batches:
        rows = batch["id"] - 10
        assert torch.equal(batch["input"]["text"], made.text[rows])
        assert torch.equal(batch["target"], made.batch()["target"][rows])
    with pytest.raises(UserError, match="contexts"):
        grouped(split.subset([0, 2, 1, 3]), 2)
    with pytest.raises(UserError, match="size"):
        grouped(split, 3)
