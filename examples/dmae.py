"""DMAE with transformers' own classes: a ViTMAE teacher, a ViTMAE student, a ViT classifier at the end.

The networks are tiny and random and the images are made here; with real ones, only the first lines change:
``ViTMAEForPreTraining.from_pretrained("facebook/vit-mae-large")`` as the teacher, batches of your images.
Run with: python examples/dmae.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from limbeck.data.loaders import TensorLoader
from limbeck.data.masking import PatchNoise
from limbeck.data.split import Split
from limbeck.engine import OptimizerSettings, fit
from limbeck.engine.finetuning import FineTuning
from limbeck.measure import token_layers
from limbeck.models.masked_autoencoder import fill_positions
from limbeck.systems.vision.dmae.method import dmae


def network(width: int, depth: int) -> Any:
    """A tiny masked autoencoder of 32 x 32 pixels in patches of 8."""
    config = ViTMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=2 * width,
        image_size=32, patch_size=8, num_channels=3, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=32, mask_ratio=0.75,
    )  # fmt: skip
    return fill_positions(ViTMAEForPreTraining(config))


def stripes(count: int) -> tuple[Tensor, Tensor]:
    """Images with stripes that lie (class 0) or stand (class 1)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    waves = torch.sin(torch.arange(32.0) * 1.2 + 6 * torch.rand(count, 1, generator=generator))
    images = torch.where(labels.view(-1, 1, 1) == 0, waves[:, :, None], waves[:, None, :]).unsqueeze(1)
    return images.repeat(1, 3, 1, 1) + 0.2 * torch.randn(count, 3, 32, 32, generator=generator), labels


def main(count: int = 96, epochs: int = 6) -> float:
    """Accuracy of the fine-tuned student on the images it was trained on."""
    torch.manual_seed(0)
    teacher, student = network(32, 8), network(16, 4)
    images, labels = stripes(count)
    loader = TensorLoader({"input": images}, 16, transform=PatchNoise(patches=16))
    distiller = dmae(student, teacher, optimizer=OptimizerSettings(lr=3e-3, weight_decay=0.05, betas=(0.9, 0.95)))
    history = fit(distiller, loader, epochs=epochs, accelerator="cpu")
    feature = history.by_epoch("feature")
    print(f"feature loss {feature[0]:.3f} -> {feature[-1]:.3f}")

    batch, passes = loader.peek(), 16 * (16 + 1) * 8
    spent = token_layers(lambda: distiller.teacher_signals(batch), teacher, layers="vit.layers.*")
    print(f"of a whole forward pass the teacher ran {spent / passes:.0%}")

    # The encoder, without decoder and projector, is a plain ViT.
    config = ViTConfig(
        **{key: value for key, value in student.config.to_dict().items() if key in ViTConfig().to_dict()}
    )
    config.num_labels = 2
    classifier = ViTForImageClassification(config)
    encoder = distiller.finish().vit
    missing, unexpected = classifier.vit.load_state_dict(encoder.state_dict(), strict=False)
    assert not missing, missing
    assert not unexpected, unexpected

    recipe = FineTuning(epochs=12, batch_size=16, optimizer=OptimizerSettings(lr=3e-3), layer_decay=0.75)
    recipe(classifier, Split(images, labels, torch.arange(count)), accelerator="cpu")
    with torch.inference_mode():
        accuracy = float((classifier(images).logits.argmax(-1) == labels).double().mean())
    print(f"accuracy after fine-tuning: {accuracy:.2f}")
    return accuracy


if __name__ == "__main__":
    main()
