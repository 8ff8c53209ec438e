"""The few names of torchvision that timm mentions while it is imported, as inert stand-ins.

torchvision has no build for every torch (none for the CPU torch of this project's machines), and timm's networks do
not need it. Where the real one is absent, :func:`standing_in` lends these names for the time of timm's import and
takes them back, so that no other library is led to believe that torchvision is there.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from limbeck.errors import LimbeckError

_MESSAGE = "torchvision is needed here and not installed; Limbeck itself does without it"


class MissingTorchvision(LimbeckError, ImportError):
    """Something of torchvision was used that is not there."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: {_MESSAGE}")


class InterpolationMode(enum.Enum):
    """The names of torchvision's interpolation modes, which timm keeps in tables."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


_CLASSES = {
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
    "torchvision.datasets": ("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder"),
    "torchvision.transforms": ("ToTensor",),
}
_PACKAGES = ("torchvision", "torchvision.ops")
_MODULES = ("torchvision.transforms.functional",)


@contextmanager
def standing_in() -> Iterator[bool]:
    """Lend the names to the imports inside; True if that was needed. A real torchvision is left alone."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield False
        return
    lent = _modules()
    sys.modules.update(lent)
    try:
        yield True
    finally:
        for name, module in lent.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _modules() -> dict[str, ModuleType]:
    made = {name: _Module(name) for name in (*_PACKAGES, *_CLASSES, *_MODULES)}
    for name, module in made.items():
        if any(other.startswith(f"{name}.") for other in made):
            module.__path__ = []
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(made[parent], leaf, module)
        for inert in _CLASSES.get(name, ()):
            setattr(module, inert, _inert(f"{name}.{inert}"))
    for name in ("torchvision.transforms", "torchvision.transforms.functional"):
        made[name].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    return dict(made)


class _Module(ModuleType):
    def __getattr__(self, name: str) -> NoReturn:
        # Python itself asks modules for dunder names and expects the ordinary answer.
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingTorchvision(f"{self.__name__}.{name}")


def _inert(path: str) -> type:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise MissingTorchvision(path)

    return type(path.rpartition(".")[2], (), {"__init__": refuse, "__module__": path.rpartition(".")[0]})
