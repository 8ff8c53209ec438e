"""MGSR with transformers' own classes and a loop of one's own: revise, compute the loss, step.

Teacher and student are tiny and random, and the task is to repeat the prompt; with real ones, only the first lines
change: ``AutoModelForCausalLM.from_pretrained(...)`` twice, one tokenizer, your prompts and answers.
Run with: python examples/multi-granularity.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limbeck.data.views import view_seeds
from limbeck.language import Decoding, OnPolicy, Reviser, Sequences, WindowSpans, answer_logits, without_answers
from limbeck.losses import cross_entropy
from limbeck.objectives import ClippedKL, SpanProduct, total
from limbeck.sources import Live

TOKENS, PAD, END, ASK = 24, 0, 1, 2


def pairs(count: int, length: int, seed: int) -> Sequences:
    """Prompts of letters, to be repeated."""
    letters = torch.randint(3, TOKENS, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return Sequences.pad([[*row, ASK] for row in letters], [[*row, END] for row in letters], pad=PAD)


def teach(model: Any, steps: int, length: int) -> float:
    """Ordinary fine-tuning on the true answers; the last loss."""
    optimiser, loss = torch.optim.AdamW(model.parameters(), 3e-3), torch.zeros(())
    for step in range(steps):
        batch = pairs(32, length, step).batch()
        loss = cross_entropy(answer_logits(model, batch)["logits"], batch["target"], mask=batch["mask"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss)


def right(model: Any, decoding: Decoding, length: int) -> float:
    """Share of tokens that greedy answers get right."""
    given = pairs(64, length, seed=10_000)
    written = decoding(model, without_answers(given))
    width = min(written.answer.shape[1], given.answer.shape[1])
    return float((written.answer[:, :width] == given.answer[:, :width]).double().mean())


def main(teacher_steps: int = 250, steps: int = 60, length: int = 4) -> tuple[float, float]:
    """Greedy accuracy of the student before and after."""
    torch.manual_seed(0)
    special: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": ASK}
    teacher = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TOKENS, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=32, **special,
        )
    )  # fmt: skip
    # Another architecture with the same tokens.
    student = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=2, n_positions=32, **special))
    print(f"teacher's loss {teach(teacher, teacher_steps, length):.3f}, student's {teach(student, 40, length):.3f}")
    decoding, source = Decoding(length + 1, END, PAD), Live(teacher, forward=answer_logits)
    before = right(student, decoding, length)

    reviser, sampler = Reviser(decoding, rounds=1), OnPolicy(decoding)
    objective = ClippedKL(k=TOKENS) + SpanProduct(WindowSpans(2))
    # The window's bounds learn with the student.
    optimiser = torch.optim.AdamW([*student.parameters(), *objective.parameters()], 3e-3)
    for step in range(steps):
        data = pairs(32, length, 20_000 + step)
        views = view_seeds(0, step, torch.arange(len(data)))
        written = reviser(student, source, sampler.decoding(student, without_answers(data), views), views)
        terms = loss_terms(student, source, objective, written, data)
        optimiser.zero_grad()
        total(terms).backward()
        optimiser.step()
        if step % 20 == 0:
            change = reviser.corrections[0].summary()
            print(f"step {step}: {', '.join(f'{name} {float(value):.3f}' for name, value in terms.items())};", end=" ")
            print(f"{float(change['changed']):.0%} of the samples corrected")
    after = right(student, decoding, length)
    print(f"tokens right before {before:.2f}, after {after:.2f}")
    return before, after


def loss_terms(student: Any, source: Live, objective: Any, written: Sequences, data: Sequences) -> dict[str, Tensor]:
    """L_SFT on the data, L_DAC and L_span on the revised text, with logits computed anew on it."""
    batch, true = written.batch(), data.batch()
    supervised = cross_entropy(answer_logits(student, true)["logits"], true["target"], mask=true["mask"])
    signals = answer_logits(student, batch), source(batch, ("logits",))
    return {"data": supervised, **objective(*signals, batch)}


if __name__ == "__main__":
    main()
