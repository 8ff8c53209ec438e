"""MEND with transformers' own classes: a small GPT-2 turns contexts into vectors in front of a frozen OPT.

Both are tiny and random; with real ones only the first lines change: ``AutoModelForCausalLM.from_pretrained(...)``
twice, one tokenizer, your texts and tasks. Run with: python examples/mend.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from limbeck.data.loaders import TensorLoader
from limbeck.engine import run_program
from limbeck.language import InContext, Prefix, in_context_batch
from limbeck.systems.language.mend.method import DemonstrationClassifier, compressor, mend

TOKENS, PAD = 16, 0


def batch(count: int, context: int, text: int, answers: int, seed: int) -> TensorLoader:
    """Random texts in contexts; of each the last tokens are the answer."""
    ids = torch.randint(1, TOKENS, (count, context + text), generator=torch.Generator().manual_seed(seed)).tolist()
    made = InContext.pad([row[:context] for row in ids], [row[context:] for row in ids], [answers] * count, pad=PAD)
    return TensorLoader({"input": made.columns()}, 16, transform=in_context_batch)


def main(steps: int = 60) -> tuple[float, float]:
    """The divergence from the model with its whole context, at the beginning and at the end of stage 1."""
    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=TOKENS, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, init_std=0.3, pad_token_id=PAD,
        )
    ).eval()  # fmt: skip
    reader = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_positions=64, n_embd=24, n_layer=1, n_head=2))
    small = compressor(model, reader, length=2, limit=32)

    texts, episodes = batch(256, 12, 4, 0, seed=1), batch(256, 12, 4, 1, seed=2)
    stages = mend(model, texts, episodes, steps=(steps, steps // 2), rates=(3e-3, 1e-3))
    history = run_program(small, stages, accelerator="cpu", log_every=5)
    curve = history["pretraining"].curve("kl")["y"]
    print(f"KL to the model with 12 tokens of context, behind 2 vectors: {curve[0]:.3f} -> {curve[-1]:.3f}")

    task = DemonstrationClassifier(model, small, candidates=[[3], [5, 7]], pad=PAD)
    task.fit([[1, 2, 3], [4, 6, 5, 7]])
    print("answers:", task.predict([[1, 2], [4, 6], [9, 8]]))
    with tempfile.TemporaryDirectory() as folder:
        task.prefix_.save(Path(folder) / "task.safetensors")
        kept = Prefix.load(Path(folder) / "task.safetensors")
    print("the task, to be kept in a file:", list(kept.vectors.shape))
    return curve[0], curve[-1]


if __name__ == "__main__":
    main()
