"""Quantized distillation of a transformers classifier: four bits per weight, in a file, and back into the model class.

Teacher and student here are tiny BERTs with random weights, so that the example needs no download. With your own,
`AutoModelForSequenceClassification.from_pretrained("./teacher")` and tokenised texts take the place of `bert()` and
`texts()`; nothing else changes. Embeddings and norms stay in full precision by their names.

    python examples/quantized-distillation.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from limbeck.data import TensorLoader
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.objectives import CrossEntropy
from limbeck.quantization import PackedNetwork
from limbeck.sources import Live
from limbeck.systems.compression.quantized_distillation.method import (
    differentiable_quantization,
    packed,
    quantized_distillation,
)

WORDS, LENGTH = 40, 12
FULL_PRECISION = ("*embeddings*", "*LayerNorm*")


def bert(width: int, layers: int) -> BertForSequenceClassification:
    """A BERT in everything but size and training."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def texts(count: int, seed: int) -> dict[str, Any]:
    """Three words of four are of the class's own half of the vocabulary; half of the texts are padded."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (count,), generator=generator)
    half = torch.where(torch.rand(count, LENGTH, generator=generator) < 0.75, target[:, None], 1 - target[:, None])
    ids = torch.randint(1, WORDS // 2, (count, LENGTH), generator=generator) + half * (WORDS // 2)
    ids[:, 8:] = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 0, ids[:, 8:])
    return {"input": {"input_ids": ids, "attention_mask": (ids > 0).long()}, "target": target}


def accuracy(model: torch.nn.Module, data: dict[str, Any]) -> float:
    """Share of texts whose class is found."""
    with torch.inference_mode():
        logits: Tensor = model.eval()(**data["input"]).logits
    return float((logits.argmax(-1) == data["target"]).double().mean())


def main(count: int = 512, epochs: int = 4) -> dict[str, float]:
    """Accuracy of the teacher, of the student at 4 bits and of the student at 2 bits with points of its own."""
    torch.manual_seed(0)
    training, test = texts(count, 0), texts(400, 1)
    loader = TensorLoader(training, 32, seed=0)
    settings = OptimizerSettings(lr=2e-3, warmup=0.1)

    teacher = bert(width=32, layers=2)
    fit(Distiller(teacher, CrossEntropy(), optimizer=settings), loader, epochs=epochs, accelerator="cpu")

    student = bert(width=32, layers=1)
    distiller = quantized_distillation(student, Live(teacher), bits=4, skip=FULL_PRECISION, optimizer=settings)
    fit(distiller, loader, epochs=epochs, accelerator="cpu")
    file = packed(distiller)
    shadow = student.state_dict()

    with tempfile.TemporaryDirectory() as folder:
        path = file.save(Path(folder) / "student.safetensors")
        restored: Any = PackedNetwork.load(path).write(bert(width=32, layers=1))
        restored.save_pretrained(Path(folder) / "student")  # an ordinary transformers model again
    size = file.size()
    print(f"{size.weights} weights of {size.code_bytes} bytes, {size.huffman_bits:.2f} bits each by Huffman")
    print(f"the whole model: {size.full_bytes} bytes became {size.bytes}")

    # Method 2 begins with the full-precision weights, and learns where four points per tensor lie.
    model = bert(width=32, layers=1)
    model.load_state_dict(shadow)
    points = differentiable_quantization(model, bits=2, batches=loader, skip=FULL_PRECISION)
    fit(points, loader, epochs=1, accelerator="cpu")
    found = {
        "teacher": accuracy(teacher, test),
        "4 bits": accuracy(restored, test),
        "2 bits, learned points": accuracy(points.finish(), test),
    }
    print(", ".join(f"{name}: {value:.2f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
