"""``py:`` and ``small:``: networks of the user's own code, and small reference networks from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from limbeck.data.callables import call_reference
from limbeck.data.images import ImageFormat, open_image
from limbeck.errors import UserError, first_line
from limbeck.models.network import (
    Network,
    TensorInput,
    TextInput,
    describe_images,
    forward_for,
    image_format_of,
    parse_options,
    probe,
    read_json,
    write_json,
)  # fmt: skip
from limbeck.models.small import MLP, SMALL_CNNS, BagOfEmbeddings, ResNetCIFAR, TinyTransformer, small_cnn
from limbeck.signals import run_network

if TYPE_CHECKING:
    from limbeck.models.references import Wanted

WEIGHTS, NOTE = "model.safetensors", "limbeck.json"
_IMAGE_NAMES = [*(f"cnn_{size}" for size in SMALL_CNNS), "resnet8", "resnet20", "resnet56"]
_TEXT_NAMES = ["bag", "transformer"]
NAMES = [*_IMAGE_NAMES, *_TEXT_NAMES, "mlp"]
_OPTIONS = {
    "cnn": ("size", "channels"),
    "resnet": ("size", "channels", "width"),
    "mlp": ("hidden", "features"),
}
_OPTIONS |= {"bag": ("width",), "transformer": ("width", "layers", "heads", "max_length")}


class PlainSaver:
    """Writes the weights as safetensors, and a note that says how to build the network they belong to."""

    def __init__(self, note: dict[str, Any], tokenizer: Any = None) -> None:
        self.note, self.tokenizer = note, tokenizer

    def __call__(self, module: nn.Module, folder: Path) -> None:
        save_model(module, str(folder / WEIGHTS))
        write_json(folder / NOTE, self.note)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def read_py(wanted: Wanted) -> Network:
    """Call the user's function; it gives an ``nn.Module`` or a :class:`Network`.

    It may take ``labels``, ``num_classes`` and ``teacher`` (a :class:`Network`). ``,weights=FILE`` behind it loads a
    file of safetensors.
    """
    rest, _, weights = wanted.rest.partition(",weights=")
    offered = {"labels": wanted.labels, "num_classes": wanted.num_classes, "teacher": wanted.teacher}
    made = call_reference(rest, key=wanted.key, allow_py=wanted.allow_py, offered=offered)
    if isinstance(made, nn.Module):
        made = _around(made, wanted)
    if not isinstance(made, Network):
        raise UserError(f"{wanted.key} {wanted.reference} returned", type(made).__name__, "an nn.Module or a Network")
    if weights:
        load_weights(made.module, Path(weights).expanduser(), wanted.key)
    if made.saver is None:
        made.saver = PlainSaver({"reference": f"py:{rest}", "labels": made.labels})
    return made


def _around(module: nn.Module, wanted: Wanted) -> Network:
    """A bare module reads what the teacher reads, or else tensors; what it gives is seen by running it once."""
    task = wanted.task or "classification"
    labels = wanted.labels if task == "classification" else None
    if wanted.teacher is not None:
        network = replace(
            wanted.teacher, module=module.eval(), forward=forward_for(task), task=task, saver=None, labels=labels,
            num_classes=None, width=None, pretrained=True, notes=["prepared as for the teacher"],
        )  # fmt: skip
    else:
        prepare = TensorInput()
        network = Network(module.eval(), forward_for(task), "tensor", task, prepare, prepare.describe(), labels=labels)
    read_shapes(network, wanted)
    return network


def read_shapes(network: Network, wanted: Wanted) -> None:
    """Fill in how many classes or how wide an embedding a network gives, by running it once."""
    try:
        signals = probe(network, wanted.sample) or {}
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        allowed = f"a network that runs on {network.modality} input as its prepare makes it"
        raise UserError(wanted.key, wanted.reference, allowed, first_line(error)) from error
    if network.task == "classification" and "logits" in signals:
        network.num_classes = int(signals["logits"].shape[-1])
    if "embedding" in signals and signals["embedding"].dim() == 2:
        network.width = int(signals["embedding"].shape[-1])


def read_small(wanted: Wanted) -> Network:
    """A network of :mod:`limbeck.models.small` by name, or a folder that one was saved in."""
    if wanted.path.is_dir():
        return _saved(wanted)
    if not wanted.student:
        raise UserError(wanted.key, wanted.reference, "small:FOLDER of a trained one", "by name its weights are random")
    name, options = parse_options(wanted.rest, wanted.key, wanted.reference)
    return _build(name, options, wanted)


def _build(name: str, options: dict[str, str], wanted: Wanted) -> Network:
    kind = "cnn" if name.startswith("cnn_") else "resnet" if name.startswith("resnet") else name
    if kind not in _OPTIONS or (kind == "cnn" and name.removeprefix("cnn_") not in SMALL_CNNS):
        raise UserError(wanted.key, wanted.reference, [f"small:{known}" for known in NAMES])
    if kind in ("cnn", "resnet") and wanted.teacher is not None and wanted.teacher.modality == "text":
        allowed = [f"small:{known}" for known in _TEXT_NAMES]
        raise UserError(wanted.key, wanted.reference, allowed, "this one is for images, and the teacher reads texts")
    for option, value in options.items():
        if option not in _OPTIONS[kind]:
            raise UserError(f"{wanted.key} option", option, _OPTIONS[kind])
        if not value.replace("-", "").isdigit():
            raise UserError(f"{wanted.key} {option}", value, "a whole number")
    classes = wanted.num_classes
    task = wanted.task or "classification"
    if task not in ("classification", "regression"):
        raise UserError(f"{wanted.key} task", task, ("classification", "regression"), "small networks have a head")
    if task == "regression":
        classes = 1
    elif classes is None:
        raise UserError(wanted.key, wanted.reference, "known classes", "pass labels, or a teacher that knows them")
    maker = {"cnn": _images, "resnet": _images, "mlp": _features}.get(kind, _texts)
    network = maker(name, options, classes, wanted)
    network.task, network.pretrained = task, False
    if task == "classification":
        network.labels, network.num_classes = wanted.labels, classes
    network.saver = PlainSaver(
        {
            "small": name,
            "options": options,
            "classes": classes,
            "task": task,
            "labels": network.labels,
            "preprocessing": network.preprocessing,
        },
        network.tokenizer,
    )
    return network


def _images(name: str, options: dict[str, str], classes: int, wanted: Wanted) -> Network:
    channels, height, width = _shape(wanted)
    channels, size = int(options.get("channels", channels)), int(options.get("size", height))
    given = wanted.sample
    if isinstance(given, Tensor) and given.is_floating_point() and image_format_of(wanted.teacher) is None:
        tensors = TensorInput()
        network = Network(nn.Identity(), run_network, "tensor", "", tensors, tensors.describe())
    else:
        wide = size if "size" in options else width
        images = image_format_of(wanted.teacher) or ImageFormat(
            (size, wide), (size, wide), "stretch", "bilinear", (0.5,) * channels, (0.5,) * channels
        )
        if (images.channels, *images.size) != (channels, size, wide):
            images = ImageFormat(
                (size, wide),
                (size, wide),
                images.fit,
                images.interpolation,
                (0.5,) * channels,
                (0.5,) * channels,
            )
        network = Network(nn.Identity(), run_network, "image", "", images, describe_images(images))
    if name.startswith("cnn_"):
        network.module = small_cnn(name.removeprefix("cnn_"), classes, channels, size)
    else:
        network.module = ResNetCIFAR(
            int(name.removeprefix("resnet") or 20), int(options.get("width", 16)), classes, channels
        )
    options.update(size=str(size), channels=str(channels))
    return network


def _features(name: str, options: dict[str, str], classes: int, wanted: Wanted) -> Network:
    if "features" not in options:
        if isinstance(wanted.sample, Tensor):
            options["features"] = str(wanted.sample.numel())
        else:
            channels, height, width = _shape(wanted)
            options["features"] = str(channels * height * width)
    hidden = [int(width) for width in options.get("hidden", "64").split("-")]
    images = image_format_of(wanted.teacher)
    module = MLP(int(options["features"]), hidden, classes)
    if images is not None:
        return Network(module, run_network, "image", "", images, describe_images(images))
    prepare = TensorInput()
    return Network(module, run_network, "tensor", "", prepare, prepare.describe())


def _texts(name: str, options: dict[str, str], classes: int, wanted: Wanted) -> Network:
    tokenizer = wanted.teacher.tokenizer if wanted.teacher is not None else None
    if tokenizer is None:
        raise UserError(wanted.key, wanted.reference, "a teacher with a tokenizer, which this student shares")
    teacher_length = getattr(wanted.teacher.prepare, "max_length", 128) if wanted.teacher is not None else 128
    length = int(options.setdefault("max_length", str(wanted.max_length or min(teacher_length, 256))))
    prepare = TextInput(tokenizer, length, ["input_ids", "attention_mask"])
    width = int(options.get("width", 64))
    if name == "bag":
        options.pop("max_length")
        module: nn.Module = BagOfEmbeddings(len(tokenizer), width, (), classes)
    else:
        layers, heads = int(options.get("layers", 1)), int(options.get("heads", 4))
        module = TinyTransformer(len(tokenizer), width, layers, heads, classes, length)
    return Network(module, run_network, "text", "", prepare, prepare.describe(), tokenizer=tokenizer)


def _shape(wanted: Wanted) -> tuple[int, int, int]:
    """Channels, height and width of the input: the teacher's, or the sample's own."""
    images = image_format_of(wanted.teacher)
    if images is not None:
        return images.channels, *images.size
    if isinstance(wanted.sample, Tensor) and wanted.sample.dim() == 3:
        channels, height, width = wanted.sample.shape
        return channels, height, width
    if isinstance(wanted.sample, (str, bytes)):
        picture = open_image(wanted.sample)
        return (1 if picture.mode in ("1", "L", "I;16") else 3), picture.height, picture.width
    return 1, 28, 28


def _saved(wanted: Wanted) -> Network:
    note = read_json(wanted.path / NOTE, wanted.key)
    if "small" not in note:
        raise UserError(
            wanted.key,
            wanted.reference,
            "a folder of a small: network",
            f"it was made from {note.get('reference')}",
        )
    from limbeck.models.references import Wanted as Ask

    teacher = _preparation(note, wanted)
    asked = Ask(
        note["small"],
        wanted.reference,
        note["task"],
        wanted.key,
        note["labels"],
        teacher,
        wanted.max_length,
        None,
        False,
    )
    if note["labels"] is None and teacher is not None:
        teacher.num_classes = note["classes"]
    network = _build(note["small"], dict(note["options"]), asked)
    load_weights(network.module, wanted.path / WEIGHTS, wanted.key)
    network.pretrained = True
    network.module.eval()
    return network


def _preparation(note: dict[str, Any], wanted: Wanted) -> Network:
    """A stand-in for the teacher that the saved network was prepared like."""
    described = dict(note["preprocessing"])
    kind = described.pop("kind")
    stand_in = Network(nn.Identity(), num_classes=note["classes"])
    if kind == "image":
        stand_in.prepare = ImageFormat.from_description(described)
    elif kind == "text":
        from limbeck.errors import require

        transformers = require("transformers", "language")
        stand_in.tokenizer = transformers.AutoTokenizer.from_pretrained(wanted.path, local_files_only=True)
        stand_in.prepare = TextInput(stand_in.tokenizer, int(described["max_length"]))
    return stand_in


def load_weights(module: nn.Module, path: Path, key: str) -> None:
    """Fill a module from a file of safetensors, or of torch weights, name for name."""
    reader: Callable[[], Any]
    if not path.is_file():
        raise UserError(f"{key} weights", str(path), "an existing file of weights")
    try:
        if path.suffix == ".safetensors":
            load_model(module, str(path))
        else:
            reader = lambda: torch.load(path, map_location="cpu", weights_only=True)  # noqa: E731
            module.load_state_dict(reader())
    except Exception as error:
        raise UserError(
            f"{key} weights", str(path), "weights of this very network, without pickled objects", first_line(error)
        ) from error
