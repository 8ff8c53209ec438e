"""How the testbeds' own networks are trained: a short deterministic loop, and a shelf for what it made."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.nn import functional

from limbeck.cache import Manifest, write_cache
from limbeck.cache.manifest import FILE as MANIFEST
from limbeck.data.augmentation import CropFlip
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.data.store import cache_folder, content_hash, file_sha256, locked, written_aside
from limbeck.signals import Batch, run_network
from limbeck.sources import Cached, Source

_log = logging.getLogger(__name__)
Built = TypeVar("Built", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """Supervised training with cross-entropy, AdamW and a cosine learning rate after a short warm-up.

    Attributes:
        epochs, batch_size: length.
        learning_rate: the peak, reached after a twentieth of the steps; it falls to zero.
        weight_decay: of AdamW.
        label_smoothing: mass given to the other classes.
        crop: pixels of random shift; 0 for no augmentation at all. ``flip``: mirror at random too.
        seed: of the initial weights, the order and the augmentation.
        version: raised whenever ``train`` changes what it makes, so that kept weights are never stale.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    crop: int = 0
    flip: bool = False
    seed: int = 0
    version: int = 2


def train(model: nn.Module, samples: Split, recipe: Recipe) -> nn.Module:
    """Train ``model`` in place on labelled ``samples``; it comes back in eval mode."""
    augment = CropFlip(recipe.crop, flip=recipe.flip) if recipe.crop else None
    # A last batch of one sample has no variance for BatchNorm, so short batches are left out.
    batch_size = min(recipe.batch_size, len(samples))
    loader = TensorLoader(samples, batch_size, seed=recipe.seed, drop_last=True, transform=augment)
    steps = recipe.epochs * len(loader)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step / steps))
    model.train()
    for _ in range(recipe.epochs):
        for batch in loader:
            logits = run_network(model, batch)["logits"]
            loss = functional.cross_entropy(logits, batch["target"], label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return model.eval()


def warm_cosine(progress: float, warm: float = 0.05) -> float:
    """Factor of the learning rate at ``progress`` in [0, 1]: up in a line, down in half a cosine."""
    if progress < warm:
        return (progress + 1e-3) / (warm + 1e-3)
    rest = min((progress - warm) / (1 - warm), 1.0)
    return 0.5 * (1 + float(torch.cos(torch.tensor(rest * torch.pi))))


def seeded(build: Callable[[], Built], seed: int) -> Built:
    """A network whose initial weights are a function of ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def frozen(model: Built) -> Built:
    """The model in eval mode, with no parameter that wants a gradient."""
    return model.requires_grad_(False).eval()


def kept_weights(
    name: str,
    content: Mapping[str, Any],
    build: Callable[[], Built],
    make: Callable[[Built], nn.Module],
) -> Built:
    """A network made once by ``make(build())`` and kept in the cache folder under the hash of ``content``.

    ``content`` is everything the weights depend on: architecture, recipe, hashes of the data. Several
    processes that need the same network train it once. A damaged file is made again.
    """
    folder = cache_folder("teachers") / f"{name}-{content_hash(content)[:16]}"
    with locked(folder.name):
        if not _intact(folder):
            _log.info("training the teacher of %s", name)
            began = time.perf_counter()
            made = make(build())
            with written_aside(folder) as aside:
                aside.mkdir()
                # Not save_file: language models tie their embeddings.
                save_model(made, str(aside / "model.safetensors"))
                manifest = {
                    "content": dict(content),
                    "sha256": file_sha256(aside / "model.safetensors"),
                    "seconds": round(time.perf_counter() - began, 2),
                    "torch": torch.__version__,
                }
                (aside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    model = build()
    load_model(model, folder / "model.safetensors")
    return frozen(model)


def kept_numbers(name: str, content: Mapping[str, Any], make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Figures made once by ``make()`` and kept in the cache folder under the hash of ``content``."""
    path = cache_folder("figures") / f"{name}-{content_hash(content)[:16]}.json"
    with locked(path.stem):
        if not path.is_file():
            figures = make()
            with written_aside(path) as aside:
                aside.write_text(json.dumps(figures, indent=1, sort_keys=True))
    kept: dict[str, float] = json.loads(path.read_text())
    return kept


def kept_tensors(name: str, content: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors made once by ``make()`` (texts as tokens, vectors of a frozen encoder) and kept under the hash of
    ``content``."""
    path = cache_folder("tensors") / f"{name}-{content_hash(content)[:16]}.safetensors"
    with locked(path.stem):
        if not path.is_file():
            made = {key: value.contiguous() for key, value in make().items()}
            with written_aside(path) as aside:
                save_file(made, aside)
    kept: dict[str, Tensor] = load_file(path)
    return kept


def kept_signals(
    name: str, source: Source, batches: Iterable[Batch], needs: Collection[str], fingerprint: Mapping[str, str]
) -> Cached:
    """A teacher's answers in the teacher cache, asked for once; ``fingerprint`` says what else decides them.

    The folder is named after the teacher's weights and ``fingerprint``; a cache of others is refused, not read.
    """
    whole = {"teacher": source.fingerprint(), **fingerprint}
    folder = cache_folder("signals") / f"{name}-{content_hash({**whole, 'needs': sorted(needs)})[:16]}"
    with locked(folder.name):
        if not (folder / MANIFEST).is_file() or not Manifest.load(folder).complete:
            write_cache(source, batches, folder, needs, fingerprint=fingerprint)
    return Cached(folder, expect=whole)


def _intact(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return bool(manifest["sha256"] == file_sha256(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError):
        return False
