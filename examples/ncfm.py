"""NCFM with networks of timm and transformers on a folder of images.

Two classes of drawings stand for your folder ``DIR/class/*.png``, and randomly initialised networks of the very
classes for pretrained ones: ``timm.create_model(name, pretrained=True)`` and
``ViTForImageClassification.from_pretrained(name)`` go into the same places. Run with: python examples/ncfm.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from limbeck.condensation import DistilledSet, ExpertPool, Training, train_fresh
from limbeck.data.images import ImageFormat, decoded
from limbeck.data.references import load_data
from limbeck.data.split import Split
from limbeck.engine import OptimizerSettings
from limbeck.models.timm import import_timm
from limbeck.systems.dataset.ncfm.method import NCFM

SIDE = 32


def vit() -> nn.Module:
    """A transformers ViT; its features are what its classifier is given."""
    config = ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=2,
    )
    return ViTForImageClassification(config)


def resnet() -> nn.Module:
    """A timm network, pixels in [0, 1] as they are."""
    network: nn.Module = import_timm().create_model("test_resnet", num_classes=2)
    return network


NETWORKS = {"transformers": (vit, "classifier:input"), "timm": (resnet, "fc:input")}


def draw_folder(folder: Path, per_class: int) -> None:
    """Discs and crosses of any colour, somewhere."""
    generator = np.random.default_rng(0)
    for name in ("cross", "disc"):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            image = Image.fromarray(generator.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8))
            x, y = generator.integers(4, SIDE - 20, 2).tolist()
            colour = tuple(generator.integers(130, 256, 3).tolist())
            pen = ImageDraw.Draw(image)
            if name == "disc":
                pen.ellipse((x, y, x + 16, y + 16), fill=colour)
            else:
                pen.line((x, y, x + 16, y + 16), fill=colour, width=3)
                pen.line((x, y + 16, x + 16, y), fill=colour, width=3)
            image.save(folder / name / f"{number}.png")


def pixels(split: Split) -> Split:
    """Files as pixels in [0, 1]."""
    images = decoded(split, [ImageFormat(size=(SIDE, SIDE), resize=(SIDE, SIDE))]).input
    assert isinstance(images, Tensor)
    return Split(images.float() / 255, split.target, split.id)


def main(kind: str = "transformers", per_class: int = 60, steps: int = 30) -> DistilledSet:
    """The distilled set of a folder; a fresh network of the same class is trained on it and tested on real images."""
    build, tap = NETWORKS[kind]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        draw_folder(Path(folder) / "shapes", per_class)
        splits = load_data(f"folder:{folder}/shapes").splits
        train, test = pixels(splits.train), pixels(splits.test)

    training = Training(steps=steps, batch_size=16, optimizer=OptimizerSettings(lr=3e-3))
    pool = ExpertPool.train(build, train, training, count=1)
    method = NCFM(pool, per_class=2, factor=2, steps=steps // 3, real_batch=16, frequencies=64, tap=tap)
    distilled = method.fit_transform(train)

    network = train_fresh(build, distilled, training)
    with torch.inference_mode():
        output = network(test.input)
        logits = output if isinstance(output, Tensor) else output.logits
        accuracy = float((logits.argmax(-1) == test.labels).double().mean())
    print(f"{kind}: {len(train)} images became {len(distilled)} pictures in {distilled.bytes} bytes")
    print(f"accuracy of a fresh network on {len(test)} real images: {accuracy:.2f}")
    return distilled


if __name__ == "__main__":
    for name in NETWORKS:
        main(name)
