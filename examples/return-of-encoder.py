"""Return of the Encoder with transformers' own classes: a T5 student learns from a Llama teacher on its own samples.

Both are tiny and random, and the task is to repeat the prompt; with real ones, only the first lines change:
``AutoModelForCausalLM.from_pretrained(...)``, ``AutoModelForSeq2SeqLM.from_pretrained(...)`` with the same tokenizer,
your sources and targets. Run with: python examples/return-of-encoder.py
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.language import Sequences, answer_logits
from limbeck.losses import cross_entropy, forward_kl
from limbeck.systems.language.return_of_encoder.method import return_of_encoder, sampling, text_pairs

TOKENS, PAD, END, ASK = 24, 0, 1, 2


def pairs(count: int, length: int, seed: int) -> Sequences:
    """Sources of letters, to be repeated."""
    letters = torch.randint(3, TOKENS, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    found, _ = text_pairs([[*row, ASK] for row in letters], letters, source=64, target=16, end=END, pad=PAD)
    return found


def teach(model: Any, steps: int, length: int) -> None:
    """Ordinary fine-tuning on the targets."""
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        batch = pairs(32, length, step).batch()
        loss = cross_entropy(answer_logits(model, batch)["logits"], batch["target"], mask=batch["mask"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def apart(student: Any, teacher: Any, length: int) -> float:
    """KL(teacher || student) per token of new targets, in nats."""
    batch = pairs(64, length, seed=10_000).batch()
    ours, theirs = (answer_logits(model.eval(), batch)["logits"] for model in (student, teacher))
    return float(forward_kl(ours, theirs, mask=batch["mask"]))


def main(teacher_steps: int = 250, steps: int = 80, length: int = 4) -> tuple[float, float]:
    """KL to the teacher before and after."""
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TOKENS, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=32, pad_token_id=PAD, eos_token_id=END, bos_token_id=ASK,
        )
    )  # fmt: skip
    student = T5ForConditionalGeneration(
        T5Config(
            vocab_size=TOKENS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=1, num_heads=4,
            decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END,
        )
    )  # fmt: skip
    teach(teacher, teacher_steps, length)
    teach(student, 30, length)
    before = apart(student, teacher, length)
    distiller = return_of_encoder(
        student, teacher, sampling(length + 1, END, PAD), optimizer=OptimizerSettings(lr=3e-3, weight_decay=0.01)
    )
    data = TensorLoader({"input": pairs(512, length, 20_000).columns()}, 32)
    fit(distiller, data, steps=steps, accelerator="cpu")
    after = apart(distiller.finish(), teacher, length)
    print(f"KL to the teacher before {before:.2f}, after {after:.2f} nats per token")
    return before, after


if __name__ == "__main__":
    main()
