"""Handwritten digits of scikit-learn: 1,797 images of 8 x 8, no download, everything within seconds."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from limbeck.errors import require
from limbeck.models.small import MLP, SmallCNN
from limbeck.testbeds.images import ImageTestbed, Pool, Regime, tensor_hash
from limbeck.testbeds.recipe import Recipe

_TEST = 500


class Digits(ImageTestbed):
    """Ten digits of 8 x 8 grey pixels. Teacher: a small CNN; student: an MLP with eight hidden units."""

    name = "digits"
    regimes = {
        "plain": Regime(
            "teacher and student see the same 1,000 images",
            student="mlp",
            teacher="cnn",
            train=1000,
            recipe=Recipe(epochs=30, batch_size=32, learning_rate=1e-2),
            teacher_recipe=Recipe(epochs=30, batch_size=32, crop=1),
            validation=297,
        ),
        "few_labels": Regime(
            "the student sees 100 images, the teacher 800 others",
            student="mlp",
            teacher="cnn",
            train=100,
            recipe=Recipe(epochs=80, batch_size=25, learning_rate=1e-2),
            teacher_recipe=Recipe(epochs=30, batch_size=32, crop=1),
            teacher_train=800,
            validation=297,
        ),
    }

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def data_hashes(self) -> dict[str, str]:
        """Hash of the images and labels as scikit-learn gives them."""
        training, test = self._pools
        return {"sklearn-digits": tensor_hash(training.images, training.labels, test.images, test.labels)}

    def pools(self) -> tuple[Pool, Pool]:
        """All but the last 500 images, and those: they are by other writers than the first ones."""
        images, labels = _digits()
        return Pool(images[:-_TEST], labels[:-_TEST]), Pool(images[-_TEST:], labels[-_TEST:])

    def prepare(self, images: Tensor, ids: Tensor) -> Tensor:
        """Pixels 0 to 16 become 0 to 1."""
        return images.float() / 16

    def network(self, name: str) -> nn.Module:
        """``mlp`` (0.6 thousand parameters) or ``cnn`` (24 thousand)."""
        return MLP(64, (8,), 10) if name == "mlp" else SmallCNN((16, 32, 64), size=8)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = require("sklearn.datasets", "vision").load_digits()
    images = torch.from_numpy(data.images).to(torch.uint8).unsqueeze(1)
    return images, torch.from_numpy(data.target).long()
