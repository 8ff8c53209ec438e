"""``timm:NAME`` and ``timm:FOLDER``: image networks of timm, which runs here without torchvision."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from limbeck.data.images import ImageFormat
from limbeck.errors import MissingExtra, UserError, first_line
from limbeck.models.network import (
    Network,
    describe_images,
    embed,
    image_format_of,
    parse_options,
    read_json,
)  # fmt: skip
from limbeck.models.timm_weights import CONFIG, WEIGHTS, TimmSaver, fetched_weights, fill, weights_of
from limbeck.models.torchvision_names import standing_in
from limbeck.signals import run_network

if TYPE_CHECKING:
    from limbeck.models.references import Wanted

EXTRA = "vision"


def import_timm() -> ModuleType:
    """timm itself, with stand-ins for torchvision's names where that is not installed."""
    try:
        with standing_in():
            timm = importlib.import_module("timm")
            for part in ("data", "layers", "models", "utils"):
                importlib.import_module(f"timm.{part}")
    except ImportError as error:
        if error.name == "timm":
            raise MissingExtra("timm", EXTRA) from error
        raise
    return timm


def read_timm(wanted: Wanted) -> Network:
    """A network of timm by name, with weights of a file, or from a folder that one was saved in.

    Options: ``pretrained_file=FILE`` (safetensors, or torch weights), ``pretrained=true`` (from the hub or its local
    cache), ``img_size=``, ``in_chans=``, and whatever the network's own constructor takes (``depth=3``).
    """
    timm = import_timm()
    if wanted.path.is_dir():
        return _saved(timm, wanted.path, wanted)
    name, options = parse_options(wanted.rest, wanted.key, wanted.reference)
    if not timm.is_model(name.split(".")[0]):
        names = timm.list_models()
        hint = "no such folder" if "/" in name else ""
        raise UserError(wanted.key, f"timm:{name}", names, hint)
    file = options.pop("pretrained_file", None)
    state = weights_of(Path(file).expanduser(), wanted) if file is not None else None
    fetched = options.pop("pretrained", "").lower()
    if fetched not in ("", "true", "false"):
        raise UserError(f"{wanted.key} pretrained", fetched, ("true", "false"))
    if state is None and not wanted.student and not fetched:
        allowed = f"timm:{name},pretrained_file=FILE, pretrained=true for the hub's weights, or =false for random ones"
        raise UserError(wanted.key, wanted.reference, allowed, "a teacher needs trained weights")
    arguments = {key: _value(value) for key, value in options.items()}
    task = wanted.task or "classification"
    classes = _classes(timm, name, task, state, wanted)
    return _network(timm, name, arguments, classes, task, state, fetched == "true", wanted)


def _network(
    timm: Any, name: str, arguments: dict[str, Any], classes: int, task: str, state: dict[str, Tensor] | None,
    fetched: bool, wanted: Wanted,
) -> Network:  # fmt: skip
    shared = image_format_of(wanted.teacher) if state is None and not fetched else None
    if shared is not None and "img_size" not in arguments and shared.size[0] == shared.size[1]:
        arguments = {"in_chans": shared.channels, **arguments, "img_size": shared.size[0]}
    elif isinstance(wanted.sample, Tensor) and wanted.sample.is_floating_point() and wanted.sample.dim() == 3:
        # Images that are float tensors already are not resized any more.
        arguments = {"in_chans": wanted.sample.shape[0], "img_size": wanted.sample.shape[1], **arguments}
    module, kept = create(timm, name, arguments, classes, fetched, wanted)
    notes = []
    if state is not None:
        notes += fill(module, state, wanted)
    found = image_format(timm, module, arguments)
    if shared is not None and (shared.size, shared.channels) == (found.size, found.channels):
        found = shared
        notes.append("images are prepared as for the teacher")
    pretrained = state is not None or fetched
    if not pretrained:
        notes.append("its weights start at random")
    return _around(module, task, found, kept, wanted.labels, pretrained, notes)


def _around(
    module: nn.Module, task: str, images: ImageFormat, arguments: dict[str, Any], labels: list[str] | None,
    pretrained: bool, notes: list[str],
) -> Network:  # fmt: skip
    features = task in ("embedding", "features")
    classes = int(getattr(module, "num_classes", 0)) if task == "classification" else None
    return Network(
        module.eval(),
        embed if features else run_network,
        "image",
        task,
        images,
        describe_images(images),
        saver=TimmSaver(images, arguments, labels if classes else None),
        labels=labels if classes else None,
        num_classes=classes,
        width=_width(module) if features else None,
        pretrained=pretrained,
        notes=notes,
    )


def create(
    timm: Any, name: str, arguments: dict[str, Any], classes: int, fetched: bool, wanted: Wanted
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a network, and say which arguments it took: only some know their image size."""
    attempts = [arguments]
    overlay = {"pretrained_cfg_overlay": {"file": str(fetched_weights(timm, name, wanted))}} if fetched else {}
    if "img_size" in arguments:
        attempts.append({key: value for key, value in arguments.items() if key != "img_size"})
    for place, attempt in enumerate(attempts):
        try:
            module: nn.Module = timm.create_model(name, pretrained=fetched, num_classes=classes, **overlay, **attempt)
            return module, attempt
        except TypeError as error:
            if place + 1 == len(attempts):
                raise UserError(wanted.key, wanted.reference, "arguments of this network", str(error)[:240]) from error
        except Exception as error:
            raise UserError(wanted.key, wanted.reference, "arguments of this network", first_line(error)) from error
    raise UserError(wanted.key, wanted.reference, "arguments of this network")


def image_format(timm: Any, module: nn.Module, arguments: dict[str, Any]) -> ImageFormat:
    """What a network of timm wants to see, as its own evaluation would prepare it."""
    given = {key: arguments[key] for key in ("img_size", "in_chans") if key in arguments}
    config = timm.data.resolve_data_config(given, model=module)
    channels, high, wide = config["input_size"]
    in_chans = int(getattr(module, "in_chans", 0) or arguments.get("in_chans", channels))
    mean, std = (_per_channel(config[name], in_chans) for name in ("mean", "std"))
    larger = (math.floor(high / config["crop_pct"]), math.floor(wide / config["crop_pct"]))
    mode = config["crop_mode"]
    if mode not in ("center", "squash"):
        raise UserError("image crop", mode, ("center", "squash"), "timm's border crop is not built")
    return ImageFormat(
        (high, wide), larger, "cover" if mode == "center" else "stretch", config["interpolation"], mean, std
    )


def _saved(timm: Any, folder: Path, wanted: Wanted) -> Network:
    if not (folder / CONFIG).is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise UserError(wanted.key, wanted.reference, "a folder that holds config.json", f"it holds {inside}")
    config = read_json(folder / CONFIG, wanted.key)
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        hint = f"write hf:{wanted.rest}" if "model_type" in config else ""
        raise UserError(wanted.key, f"{wanted.reference} with the architecture {name}", timm.list_models(), hint)
    files = [folder / WEIGHTS, folder / "pytorch_model.bin"]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise UserError(wanted.key, wanted.reference, f"a folder that holds {WEIGHTS}")
    state = weights_of(file, wanted)
    task = wanted.task or ("classification" if config.get("num_classes") else "embedding")
    own = config.get("label_names")
    labels = list(own) if isinstance(own, list) and task == "classification" else None
    same = not wanted.student or wanted.labels is None or (labels is None or set(labels) == set(wanted.labels))
    classes = (
        _classes(timm, name, task, None, wanted) if wanted.student and not same else int(config.get("num_classes", 0))
    )
    if task in ("embedding", "features"):
        classes = 0
    # Newer versions of timm repeat there what the head is made by.
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
    overlay = dict(config.get("pretrained_cfg") or {})
    module, _ = create(timm, name, {**arguments, "pretrained_cfg_overlay": overlay}, classes, False, wanted)
    ours = config.get("limbeck") or {}
    for path, length in dict(ours.get("stacks") or {}).items():
        stack = module.get_submodule(path)
        if isinstance(stack, (nn.Sequential, nn.ModuleList)):
            del stack[length:]
    notes = fill(module, state, wanted)
    described = ours.get("images")
    images = ImageFormat.from_description(described) if described else image_format(timm, module, arguments)
    return _around(module, task, images, arguments, labels if same else wanted.labels, True, notes)


def _classes(timm: Any, name: str, task: str, state: dict[str, Tensor] | None, wanted: Wanted) -> int:
    if task in ("embedding", "features"):
        return 0
    if task == "regression":
        return 1
    if task != "classification":
        raise UserError(f"{wanted.key} task", task, ("classification", "regression", "embedding", "features"))
    if wanted.student and wanted.num_classes is not None:
        return wanted.num_classes
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if state is not None:
        heads = config.classifier if config is not None else None
        first = heads if isinstance(heads, str) else heads[0] if heads else ""
        weight = state.get(f"{first}.weight")
        if weight is not None:
            return int(weight.shape[0])
    return int(config.num_classes) if config is not None else 1000


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _width(module: Any) -> int:
    # Behind the last stage some networks have one more layer, so that their embedding has another width.
    return int(getattr(module, "head_hidden_size", None) or module.num_features)


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels
