"""A network that can be run on raw samples: module, preparation of its input, names of its outputs, way to save it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_text, fingerprint_tokenizer
from limbeck.data.images import ImageFormat
from limbeck.errors import LimbeckError, UserError
from limbeck.nn.mode import evaluating
from limbeck.signals import Batch, Forward, name_output, run_network

Prepare = Callable[[Any], Any]
Saver = Callable[[nn.Module, Path], None]
#: Texts are cut after so many tokens unless the network or the user asks for less or more.
USUAL_LENGTH = 512


@dataclass
class Network:
    """A network with everything that is needed to run, compare and save it.

    Attributes:
        module: runs on ``batch["input"]``.
        forward: ``(module, batch) -> signals``: ``logits``, ``embedding``, or whatever the module names. Causal
            language models give ``logits[:, i]`` for the token ``i + 1``.
        modality: ``text``, ``image`` or ``tensor``, which is what ``prepare`` reads.
        task: what the outputs are for.
        prepare: raw samples (texts or tuples of two texts; paths, bytes or uint8 tensors of images; tensors) to the
            input of a batch.
        preprocessing: what ``prepare`` does, as plain values: equal ones prepare equally.
        reference: where it came from.
        saver: writes a module like this one into a folder, in its ecosystem's own format.
        tokenizer: of a text network.
        labels: class names in the order of the logits that ``forward`` gives, if known.
        num_classes: width of the logits, if known.
        width: width of the embedding, if there is one.
        pretrained: False when its weights are random.
        targets: for causal language models: ``batch -> {"target", "mask"}`` of the next tokens.
        notes: what was decided on the way.
    """

    module: nn.Module
    forward: Forward = run_network
    modality: str = "tensor"
    task: str = "classification"
    prepare: Prepare = field(default_factory=lambda: TensorInput())
    preprocessing: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    saver: Saver | None = None
    tokenizer: Any = None
    labels: list[str] | None = None
    num_classes: int | None = None
    width: int | None = None
    pretrained: bool = True
    targets: Callable[[Batch], dict[str, Tensor]] | None = None
    notes: list[str] = field(default_factory=list)

    def save(self, folder: str | Path) -> None:
        """Write the network into ``folder``, so that its own ecosystem and :func:`load_network` open it.

        Raises:
            LimbeckError: it has no format of its own, or the disk is full.
        """
        if self.saver is None:
            raise LimbeckError(f"{self.reference or type(self.module).__name__} cannot be saved: it only teaches")
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            self.saver(self.module, target)
        except OSError as error:
            raise LimbeckError(f"cannot write the network into {target}: {error}") from error

    def preprocessing_fingerprint(self) -> str:
        """Hash of what happens to a sample before the network sees it, and of how its outputs are read."""
        return fingerprint_text("preprocessing", self.preprocessing, self.forward_name)

    @property
    def forward_name(self) -> str:
        """What tells one way of running a network from another, such as logits in another order."""
        return str(getattr(self.forward, "__qualname__", type(self.forward).__qualname__))

    def describe(self) -> str:
        """One line: reference, class, task, number of weights."""
        count = sum(parameter.numel() for parameter in self.module.parameters())
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        start = "" if self.pretrained else ", random weights"
        kind = f"{type(self.module).__name__}, {self.modality} {self.task}"
        return f"{self.reference}: {kind}{classes}, {count:,} weights{start}"


class TextInput:
    """Texts, or tuples of two texts, to padded token tensors.

    Args:
        tokenizer: of transformers; without a padding token its end-of-text token pads.
        max_length: longer texts are cut.
        names: the tensors that the network takes; by default those the tokenizer makes.
    """

    def __init__(self, tokenizer: Any, max_length: int, names: Sequence[str] | None = None) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise UserError("tokenizer", "one without a padding or end-of-text token", "a tokenizer that can pad")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.names = list(names or tokenizer.model_input_names)

    def __call__(self, texts: Sequence[Any]) -> dict[str, Tensor]:
        given = list(texts)
        if not given or not all(isinstance(text, (str, tuple, list)) for text in given):
            kind = type(given[0]).__name__ if given else "no texts"
            raise UserError("input", kind, "texts, or tuples of two texts, for a network that reads text")
        columns = [list(column) for column in zip(*given)] if not isinstance(given[0], str) else [given]
        found = self.tokenizer(*columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt")
        return {name: found[name] for name in self.names if name in found}

    def describe(self) -> dict[str, Any]:
        """As plain values; the tokenizer counts by its content."""
        return {
            "kind": "text",
            "tokenizer": fingerprint_tokenizer(self.tokenizer),
            "max_length": self.max_length,
            "padding_side": self.tokenizer.padding_side,
            "names": self.names,
        }


class TensorInput:
    """Samples that are tensors already: stacked, and pixels 0 ... 255 brought to 0 ... 1."""

    def __call__(self, samples: Any) -> Any:
        if isinstance(samples, Mapping):
            return dict(samples)
        if not isinstance(samples, Tensor):
            if any(isinstance(sample, (str, bytes)) for sample in samples):
                hint = "return a Network whose prepare reads them, such as ImageFormat(...) or TextInput(...)"
                raise UserError("input", "texts or paths", "tensors, for a network without preprocessing", hint)
            samples = torch.stack([torch.as_tensor(sample) for sample in samples])
        return samples.float() / 255 if samples.dtype == torch.uint8 else samples

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {"kind": "tensor"}


def describe_images(image_format: ImageFormat) -> dict[str, Any]:
    """The preprocessing of an image network as plain values."""
    return {"kind": "image", **image_format.describe()}


def image_format_of(network: Network | None) -> ImageFormat | None:
    """How a network wants its images, if it reads images."""
    return network.prepare if network is not None and isinstance(network.prepare, ImageFormat) else None


def embed(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a network whose one output is an embedding ``[B, D]``."""
    given = batch["input"]
    output = model(**given) if isinstance(given, Mapping) else model(given)
    return {"embedding": output} if isinstance(output, Tensor) else name_output(output)


def next_token_logits(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a causal language model: ``logits[:, i]`` ``[B, L - 1, V]`` are of the token ``i + 1``."""
    # A transformers model would keep keys and values for a generation that never comes.
    extra = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    logits = name_output(model(**batch["input"], **extra))["logits"]
    return {"logits": logits[:, :-1]}


def next_token_targets(batch: Batch) -> dict[str, Tensor]:
    """``target`` and ``mask`` ``[B, L - 1]`` for :func:`next_token_logits`: padding neither asks nor answers."""
    ids, counts = batch["input"]["input_ids"], batch["input"]["attention_mask"].bool()
    return {"target": ids[:, 1:].contiguous(), "mask": counts[:, 1:] & counts[:, :-1]}


def forward_for(task: str) -> Forward:
    """How to run a network whose outputs have no names of their own."""
    if task == "causal-lm":
        return next_token_logits
    return embed if task in ("embedding", "features") else run_network


def probe(network: Network, sample: Any = None) -> dict[str, Tensor] | None:
    """Signals of one made-up sample, or of ``sample``; None where nothing is known that the network could read."""
    if isinstance(network.prepare, ImageFormat):
        raw: Any = torch.zeros(1, network.prepare.channels, *network.prepare.size, dtype=torch.uint8)
    elif isinstance(network.prepare, TextInput):
        raw = ["a few words"]
    elif isinstance(sample, Tensor):
        raw = sample.unsqueeze(0)
    else:
        return None
    with evaluating(network.module), torch.no_grad():
        return network.forward(network.module, {"input": network.prepare(raw)})


def parse_options(rest: str, key: str, reference: str) -> tuple[str, dict[str, str]]:
    """``NAME,size=32,layers=0,2`` to the name and its options; a part without ``=`` belongs to the option before."""
    name, *parts = rest.split(",")
    if "=" in name:
        name, parts = "", [name, *parts]
    options: dict[str, str] = {}
    last = ""
    for part in parts:
        option, equals, value = part.partition("=")
        if equals:
            last = option.strip()
            options[last] = value.strip()
        elif last:
            options[last] += f",{part.strip()}"
        else:
            raise UserError(key, reference, "options of the form name=value", f"{part!r} has no =")
    return name.strip(), options


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A mapping as a readable file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, key: str) -> dict[str, Any]:
    """A mapping from a file, or an error that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(key, str(path), "a readable JSON file", str(error)) from error
    if not isinstance(value, dict):
        raise UserError(key, str(path), "a JSON object")
    return value
