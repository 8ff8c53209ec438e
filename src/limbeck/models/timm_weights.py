"""Weights of timm networks: read from files and the hub, filled in, and written with their configuration."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from limbeck.data.images import ImageFormat
from limbeck.errors import UserError, first_line
from limbeck.models.network import write_json

if TYPE_CHECKING:
    from limbeck.models.references import Wanted

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class TimmSaver:
    """Writes ``model.safetensors`` and ``config.json`` as timm's own ``local-dir:`` reads them.

    A network with fewer layers than its constructor makes is also described by the lengths of its stacks, which only
    Limbeck reads; a vision transformer's depth is an argument that timm reads as well.
    """

    def __init__(self, images: ImageFormat, arguments: dict[str, Any], labels: list[str] | None) -> None:
        self.images, self.arguments, self.labels = images, arguments, labels

    def __call__(self, module: nn.Module, folder: Path) -> None:
        config: Any = module.pretrained_cfg
        full: Any = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        arguments = dict(self.arguments)
        if isinstance(getattr(module, "blocks", None), nn.Sequential) and "depth" in _parameters(module):
            arguments["depth"] = len(module.blocks)  # type: ignore[arg-type]
        images = self.images
        described = {
            "input_size": [images.channels, *images.size],
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation,
            "crop_pct": images.size[0] / images.resize[0],
            "crop_mode": "center" if images.fit == "cover" else "squash",
            "first_conv": full.get("first_conv"),
            "classifier": full.get("classifier"),
        }
        note: dict[str, Any] = {
            "architecture": full["architecture"],
            "num_classes": int(module.num_classes),  # type: ignore[arg-type]
            "num_features": int(module.num_features),  # type: ignore[arg-type]
            "model_args": arguments,
            "pretrained_cfg": described,
            "limbeck": {"stacks": _stacks(module), "images": images.describe()},
        }
        if self.labels:
            note["label_names"] = self.labels
        save_model(module, str(folder / WEIGHTS))
        write_json(folder / CONFIG, note)


def fetched_weights(timm: Any, name: str, wanted: Wanted) -> Path:
    """The published weights of a network, from the local hub cache or the hub."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    hub_name = getattr(config, "hf_hub_id", None)
    if not hub_name:
        raise UserError(
            wanted.key, wanted.reference, f"timm:{name},pretrained_file=FILE", "the hub has no weights for it"
        )
    hub = importlib.import_module("huggingface_hub")
    reason = ""
    for local in (True, False):
        try:
            folder = Path(hub.snapshot_download(hub_name, allow_patterns=[WEIGHTS], local_files_only=local))
        except Exception as error:
            reason = first_line(error)
            continue
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
        reason = f"{hub_name} holds no {WEIGHTS}"
    hint = f"its weights are not in the local hub cache, and the hub did not give them: {reason}"
    raise UserError(wanted.key, wanted.reference, f"timm:{name},pretrained_file=FILE", hint)


def fill(module: nn.Module, state: dict[str, Tensor], wanted: Wanted) -> list[str]:
    """Load weights by name. A head of other classes is left out for a student, refused for a teacher."""
    own = module.state_dict()
    head = _head_names(module)
    left = [n for n in state if n in head and (n not in own or _other_classes(own[n], state[n]))]
    if left and not wanted.student and wanted.task not in ("embedding", "features"):
        raise UserError(wanted.key, wanted.reference, "weights with a head for these classes", f"{left[0]} differs")
    chosen = {name: value for name, value in state.items() if name not in left}
    missing = [name for name in own if name not in chosen and name not in head]
    missing += [name for name in own if name in head and name not in chosen and not left]
    odd = [n for n in chosen if n not in own and n not in head] + [
        n for n, value in chosen.items() if n in own and own[n].shape != value.shape
    ]
    if missing or odd:
        given = f"{len(missing)} weights missing, {len(odd)} that do not fit ({(missing + odd)[0]})"
        raise UserError(f"{wanted.key} weights", given, f"the weights of {wanted.reference}")
    module.load_state_dict({name: value for name, value in chosen.items() if name in own}, strict=False)
    return [f"new at random: the head ({', '.join(left)})"] if left and set(left) & set(own) else []


def _other_classes(own: Tensor, given: Tensor) -> bool:
    return own.shape[1:] == given.shape[1:] and own.shape[:1] != given.shape[:1]


def _parameters(module: nn.Module) -> set[str]:
    return set(inspect.signature(type(module).__init__).parameters)


def _stacks(module: nn.Module) -> dict[str, int]:
    """Lengths of all stacks: a student may have fewer layers than its constructor makes."""
    stacks = (nn.Sequential, nn.ModuleList)
    return {path: len(part) for path, part in module.named_modules() if path and isinstance(part, stacks)}


def _head_names(module: nn.Module) -> set[str]:
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    names = config.get("classifier") if isinstance(config, dict) else getattr(config, "classifier", None)
    heads = (names,) if isinstance(names, str) else tuple(names or ())
    return {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


def weights_of(path: Path, wanted: Wanted) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{wanted.key} pretrained_file", str(path), "an existing file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{wanted.key} pretrained_file",
            str(path),
            "safetensors, or torch weights without pickled objects",
            first_line(error),
        ) from error
    for name in ("state_dict_ema", "state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{wanted.key} pretrained_file", str(path), "a mapping of names to tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}
