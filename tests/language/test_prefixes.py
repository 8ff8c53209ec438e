"""Contexts as vectors: what they may depend on, where gradients go, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from limbeck.engine import Distiller
from limbeck.errors import UserError
from limbeck.language import BehindPrefix, ContextCompressor, InContext, SharedPrompt, full_context_logits
from limbeck.objectives import SelectedKL
from limbeck.sources import Live


def llama(width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=12, n_positions=32, n_embd=width, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


def tokens() -> InContext:
    return InContext.pad([[5, 6, 7, 8], [9], []], [[3, 4], [4, 5, 6], [7, 8, 9]], [1, 1, 1], pad=0)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_rows_vectors_do_not_depend_on_padding_or_its_neighbours(build: Any) -> None:
    made, given = ContextCompressor(build(), 3, 16).eval(), tokens()
    with torch.no_grad():
        whole = made(given.context, given.context_mask)
        alone = made(given.context[1:2, :1], given.context_mask[1:2, :1])
        garbage = torch.where(given.context_mask, given.context, 11)
        other = made(garbage, given.context_mask)
        left = made(given.context.roll(3, 1)[1:2], given.context_mask.roll(3, 1)[1:2])
    for found in (alone.vectors, left.vectors):
        torch.testing.assert_close(found, whole.vectors[1:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.vectors, whole.vectors)
    assert whole.vectors.shape == (3, 3, 16)


def test_an_empty_context_gives_an_empty_prefix() -> None:
    made, given = ContextCompressor(llama(), 3, 16).eval(), tokens()
    prefix = made(given.context, given.context_mask)
    assert prefix.mask.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert float(prefix.vectors[2].abs().max()) == 0.0
    none = made(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    assert not bool(none.mask.any())
    model = llama(seed=1)
    read = BehindPrefix(model)(made, tokens().without_context().batch())["logits"]
    wanted = full_context_logits(model, tokens().without_context().batch())["logits"]
    torch.testing.assert_close(read[tokens().text_mask], wanted[tokens().text_mask], atol=1e-5, rtol=1e-4)


def test_a_projector_bounds_vectors_of_another_width_and_none_is_made_for_the_same() -> None:
    given = tokens()
    wide = ContextCompressor(llama(), 3, 24)
    for weight in wide.projector.parameters():
        weight.data.mul_(1e3)
    vectors = wide(given.context, given.context_mask).vectors
    assert vectors.shape[-1] == 24
    assert float(vectors.abs().max()) <= 1.0
    assert isinstance(ContextCompressor(llama(), 3, 16).projector, nn.Identity)


def test_queries_begin_as_words_or_as_noise() -> None:
    reader = llama()
    table = reader.get_input_embeddings().weight  # type: ignore[operator]
    words = ContextCompressor(reader, 4, 16, seed=1).queries
    assert all(bool((table == query).all(1).any()) for query in words)
    noise = ContextCompressor(llama(), 400, 16, start="normal", seed=1).queries
    assert abs(float(noise.std()) - 0.02) < 0.002
    assert torch.equal(words, ContextCompressor(llama(), 4, 16, seed=1).queries)
    assert not torch.equal(words, ContextCompressor(llama(), 4, 16, seed=2).queries)
    with pytest.raises(UserError, match="start"):
        ContextCompressor(llama(), 4, 16, start="zeros")


def test_gradients_reach_the_compressor_and_leave_the_model_alone() -> None:
    model, made = llama(seed=1), ContextCompressor(llama(), 3, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    distiller = Distiller(made, SelectedKL(), Live(model, forward=full_context_logits), forward=BehindPrefix(model))
    batch = {**tokens().batch(), "id": torch.arange(3)}
    terms = distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)
    terms["kl"].backward()
    assert all(weight.grad is not None for weight in made.parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any("model.lm_head" in name for name in distiller.state_dict())
    assert sum(weight.numel() for weight in distiller.parameters()) == sum(w.numel() for w in made.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_vectors_that_are_the_contexts_embeddings_leave_no_divergence() -> None:
    model, given = llama(seed=1), tokens()

    class Whole(nn.Module):
        def forward(self, context: torch.Tensor, mask: torch.Tensor) -> Any:
            from limbeck.language import Prefix

            return Prefix(model.get_input_embeddings()(context), mask)  # type: ignore[operator]

    batch = given.batch()
    student = BehindPrefix(model)(Whole(), batch)
    teacher = Live(model, forward=full_context_logits)(batch, ("logits", "counted"))
    assert float(SelectedKL()(student, teacher, batch)["kl"]) < 1e-6
    moved = {**teacher, "logits": teacher["logits"].roll(1, 1)}  # type: ignore[union-attr]
    assert float(SelectedKL()(student, moved, batch)["kl"]) > 1e-4, "one place off is another matter"


def test_a_shared_prompt_reads_nothing() -> None:
    table, given = torch.randn(12, 16), tokens()
    prefix = SharedPrompt(table, 3, seed=0)(given.context, given.context_mask)
    assert torch.equal(prefix.vectors[0], prefix.vectors[1])
    assert bool(prefix.mask.all())


def test_contexts_beyond_the_limit_are_refused() -> None:
    made, given = ContextCompressor(llama(), 3, 16, limit=3), tokens()
    with pytest.raises(UserError, match="at most 3"):
        made(given.context, given.context_mask)
    with pytest.raises(UserError, match="length"):
        ContextCompressor(llama(), 0, 16)


def test_a_context_that_comes_several_times_is_read_once_and_counts_as_often() -> None:
    made, given = ContextCompressor(llama(), 3, 16), tokens()
    rows, read = torch.tensor([0, 1, 0, 2, 1]), []
    made.reader.register_forward_pre_hook(
        lambda module, args, given: read.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    found = made(given.context[rows], given.context_mask[rows])
    assert read == [3]
    alone = made(given.context, given.context_mask)
    torch.testing.assert_close(found.vectors, alone.vectors[rows], atol=1e-5, rtol=1e-4)
    assert torch.equal(found.mask, alone.mask[rows])
    (found.vectors**2).sum().backward()
    once = made.queries.grad
    made.zero_grad()
    separately = [made(given.context[row : row + 1], given.context_mask[row : row + 1]) for row in rows.tolist()]
    torch.stack([(one.vectors**2).sum() for one in separately]).sum().backward()
    torch.testing.assert_close(once, made.queries.grad, atol=1e-4, rtol=1e-3)
