"""ALBEF with transformers' own classes: a ViT, a BERT, and BERT layers with cross-attention as the fusion encoder.

The networks are tiny and random and the pairs are made here; with real ones, only the first lines change:
``ViTModel.from_pretrained("facebook/deit-base-patch16-224")``, the first six layers of a BERT as the text
encoder, its last six as the fusion encoder, your pictures and captions.
Run with: python examples/albef.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.data.words import MaskWords, Words
from limbeck.engine import OptimizerSettings, fit
from limbeck.models.hf_fusion import BertFusion
from limbeck.models.vision_language import VisionLanguage
from limbeck.systems.vision_language.albef.method import ALBEF
from limbeck.testbeds.pairs import EncodedPairs

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "white": (1.0, 1.0, 1.0)}
PLACES = {"left": (slice(None), slice(0, 8)), "right": (slice(None), slice(8, 16)), "top": (slice(0, 8), slice(None))}


def pairs(count: int) -> tuple[Tensor, list[str]]:
    """Pictures of a coloured half on grey noise, and what they show."""
    generator = torch.Generator().manual_seed(0)
    pictures, captions = 0.3 * torch.randn(count, 3, 16, 16, generator=generator), []
    for number in range(count):
        colour, place = list(COLOURS)[number % 4], list(PLACES)[number // 4 % 3]
        rows, columns = PLACES[place]
        pictures[number, :, rows, columns] += torch.tensor(COLOURS[colour]).view(3, 1, 1)
        captions.append(f"{colour} at the {place}")
    return pictures, captions


def network(words: int) -> VisionLanguage:
    """A tiny ALBEF of transformers' parts."""
    size = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertConfig(vocab_size=words, num_hidden_layers=1, max_position_embeddings=16, **size)
    image = ViTModel(ViTConfig(image_size=16, patch_size=8, num_hidden_layers=1, **size), add_pooling_layer=False)
    return VisionLanguage(
        image,
        BertModel(bert, add_pooling_layer=False),
        nn.Linear(32, 16),
        nn.Linear(32, 16),
        fusion=BertFusion.from_config(bert),
        words=BertOnlyMLMHead(bert),
    )


def main(count: int = 96, epochs: int = 40) -> float:
    """Recall@1 of captions for pictures after training."""
    torch.manual_seed(0)
    pictures, captions = pairs(count)
    words = Words.of(captions, length=8)
    kinds = sorted(set(captions))
    target = torch.tensor([kinds.index(caption) for caption in captions])
    samples = Split({"pixel_values": pictures, **words(captions)}, target, torch.arange(count))

    model = network(len(words))
    loader = TensorLoader(samples, 12, transform=MaskWords(len(words), 0.3))
    albef = ALBEF(
        model, width=16, queue=48, ramp=len(loader), momentum=0.99, optimizer=OptimizerSettings(lr=3e-3, warmup=0.1)
    )
    history = fit(albef, loader, epochs=epochs, accelerator="cpu", log_every=1)
    for name in ("contrast", "matching", "language"):
        losses = history.by_epoch(f"student/{name}")
        print(f"{name} {losses[0]:.2f} -> {losses[-1]:.2f}")

    found = EncodedPairs(model, samples)
    recall = found.recall((1,))["image_to_text_recall@1"]
    again = found.reranked(4)["image_to_text_recall@1"]
    print(f"recall@1 by similarity {recall:.2f}, judged again by the fusion encoder {again:.2f}")
    return recall


if __name__ == "__main__":
    main()
