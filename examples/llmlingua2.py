"""LLMLingua-2 with transformers' own classes: a teacher is asked, a student learns its choices, a prompt is shortened.

The student is a tiny XLM-RoBERTa with random weights, and the teacher a function that plays a chat model which deletes
function words (and now and then breaks its instruction). In earnest only the first lines change:
``TokenClassifier.on(AutoModel.from_pretrained("FacebookAI/xlm-roberta-large"), tokenizer)`` and
``Instructed(lambda prompt: client.chat.completions.create(...).choices[0].message.content)``; a released checkpoint is
``TokenClassifier.from_folder(...)`` and needs no training.
Run with: python examples/llmlingua2.py
"""

from __future__ import annotations

import random

import torch
from transformers import AutoModel, XLMRobertaConfig

from limbeck.engine.optimizer import OptimizerSettings
from limbeck.language.compressors import INSTRUCTION, Instructed
from limbeck.language.keeping import Keeper
from limbeck.models.token_classifier import TokenClassifier
from limbeck.models.word_pieces import word_pieces
from limbeck.systems.language.llmlingua2.method import LLMLingua2, Recipe

FUNCTION = {"the", "a", "of", "to", "and", "is", "in", "it", "that", "was"}
CONTENT = {"council", "budget", "vote", "park", "item", "road", "school", "motion", "hearing", "plan", "fund", "report"}


def minutes(count: int, seed: int) -> list[str]:
    """Something like transcripts of meetings."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        words = [draw.choice(sorted(FUNCTION if draw.random() < 0.5 else CONTENT)) for _ in range(24)]
        lines.append(" ".join([*words[:12], ".", "item", str(draw.randint(1, 99)), *words[12:], "."]))
    return lines


def chat_model(prompt: str) -> str:
    """What a chat model might answer: content words, and in one of five answers a changed word."""
    text = prompt.removeprefix(INSTRUCTION)
    kept = [word for word in text.split() if word not in FUNCTION]
    return " ".join(["summary", *kept] if len(text) % 5 == 0 else kept)


def main(texts: int = 240, epochs: int = 4) -> tuple[float, float]:
    """Share of content words among those kept at half, before and after training."""
    torch.manual_seed(0)
    train, held_out = minutes(texts, 0), minutes(20, 1)
    tokenizer = word_pieces(train, 120)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    student = TokenClassifier.on(AutoModel.from_config(config), tokenizer)
    method = LLMLingua2(
        student,
        rate=0.5,
        teacher=Instructed(chat_model),
        forced={"\n", "?"},
        digits=True,
        recipe=Recipe(epochs=epochs, batch_size=16, optimizer=OptimizerSettings("adam", 3e-3, schedule="linear")),
        accelerator="cpu",
    )

    def share(short: list[str]) -> float:
        words = [word for text in short for word in text.split()]
        return sum(word in CONTENT for word in words) / len(words)

    before = share(method.transform(held_out))
    method.fit(train)
    after = share(method.transform(held_out))
    given = method.annotation_
    print(f"{len(given.trusted)} of {len(train)} answers trusted; content words kept: {before:.2f}, then {after:.2f}")

    prompt = held_out[0] + "\n" + held_out[1] + "\n\nwhat was the vote?"
    method.keeper = Keeper(0.4, forced={"\n", "?"}, digits=True, drop_repeats=True)
    print(method.compress(prompt))
    # Several documents under one budget: whole ones go first.
    print([len(text.split()) for text in method.compress_contexts(held_out[:4])])
    return before, after


if __name__ == "__main__":
    main()
