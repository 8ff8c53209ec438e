"""``hf:NAME_OR_FOLDER``: networks of transformers and sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.tables import near_files
from limbeck.errors import UserError, first_line, require
from limbeck.models.hf_networks import (
    EXTRA,
    encoder_network,
    image_network,
    quiet,
    refuse_two_way,
    text_length,
    text_network,
)  # fmt: skip
from limbeck.models.network import USUAL_LENGTH, Network
from limbeck.models.references import Wanted
from limbeck.models.sentence import SentenceEncoder

AUTO = {
    ("text", "classification"): "AutoModelForSequenceClassification",
    ("text", "regression"): "AutoModelForSequenceClassification",
    ("text", "causal-lm"): "AutoModelForCausalLM",
    ("text", "features"): "AutoModel",
    ("image", "classification"): "AutoModelForImageClassification",
    ("image", "regression"): "AutoModelForImageClassification",
    ("image", "embedding"): "AutoModel",
    ("image", "features"): "AutoModel",
}
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json", "bpe.codes")
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json", "pytorch_model*.bin")


def read_hf(wanted: Wanted) -> Network:
    """Open a local folder, or a hub name through the local hub cache."""
    transformers = require("transformers", EXTRA)
    folder = local_folder(wanted)
    with quiet():
        config = _config(transformers, folder, wanted)
        modality = _modality(config, wanted)
        task = wanted.task or _own_task(config, folder, modality)
        if modality == "text" and task == "embedding":
            return _encoder(folder, wanted)
        if (modality, task) not in AUTO:
            tasks = [name for kind, name in AUTO if kind == modality]
            raise UserError(f"{wanted.key} task", task, tasks, f"{wanted.reference} reads {modality}s")
        config, labels, notes = _head(config, task, wanted)
        module, pretrained, more = _model(transformers, AUTO[modality, task], folder, config, task, wanted)
        tokenizer = _tokenizer(transformers, folder, wanted) if modality == "text" else None
    if modality == "image":
        network = image_network(module, task, folder, wanted)
    else:
        network = text_network(module, task, tokenizer, wanted.max_length)
        if task == "causal-lm":
            refuse_two_way(module, wanted.key, wanted.reference)
    network.labels = labels if task == "classification" else None
    network.num_classes = int(config.num_labels) if task == "classification" else None
    network.pretrained = pretrained
    network.notes += notes + more
    return network


def own_tokenizer(reference: str, key: str) -> Any:
    """The tokenizer in the folder of a reference ``hf:NAME_OR_FOLDER``; weights need not be there."""
    scheme, _, rest = reference.partition(":")
    if scheme != "hf" or not rest:
        raise UserError(key, reference, "hf:NAME_OR_FOLDER")
    wanted = Wanted(rest, reference, None, key, None, None, None, None, False)
    transformers = require("transformers", EXTRA)
    folder = wanted.path if wanted.path.is_dir() else local_folder(wanted)
    with quiet():
        return _tokenizer(transformers, folder, wanted)


def local_folder(wanted: Wanted) -> Path:
    """The folder of a reference: itself, or the snapshot of a hub name."""
    path = wanted.path
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise UserError(wanted.key, wanted.reference, "a folder that holds config.json", f"it holds {inside}")
        return path
    if path.is_file() or wanted.rest.startswith((".", "/", "~")) or wanted.rest.count("/") > 1:
        raise UserError(wanted.key, wanted.reference, near_files(path, ("/",)), "no such folder")
    return _snapshot(wanted)


def _snapshot(wanted: Wanted) -> Path:
    hub = require("huggingface_hub", EXTRA)
    try:
        found = Path(hub.snapshot_download(wanted.rest, local_files_only=True))
        if (found / "config.json").is_file():
            return found
    except (OSError, ValueError):
        pass
    try:
        return Path(hub.snapshot_download(wanted.rest, allow_patterns=list(_FILES)))
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            wanted.key, wanted.reference, "a local folder, or a name that is in the local hub cache",
            f"there is no such folder, and the hub did not give it: {reason[:160]}",
        ) from error  # fmt: skip


def _config(transformers: Any, folder: Path, wanted: Wanted) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        hint = first_line(error)
        if (folder / "config.json").read_text(errors="replace").find('"architecture"') > 0:
            hint = f"this looks like a timm folder: write timm:{wanted.rest}"
        raise UserError(
            wanted.key, wanted.reference, "a config.json of a model that transformers itself knows", hint
        ) from error


def _modality(config: Any, wanted: Wanted) -> str:
    images = any(getattr(config, name, None) is not None for name in ("num_channels", "image_size", "patch_size"))
    texts = getattr(config, "vocab_size", None) is not None
    if images == texts:
        raise UserError(
            wanted.key, f"{wanted.reference} ({config.model_type})", "a network of texts or of images alone"
        )
    return "image" if images else "text"


def _own_task(config: Any, folder: Path, modality: str) -> str:
    architecture = str((config.architectures or [""])[0])
    if architecture.endswith(("ForSequenceClassification", "ForImageClassification")):
        return "regression" if config.num_labels == 1 or config.problem_type == "regression" else "classification"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal-lm"
    return "embedding" if modality == "image" or (folder / "modules.json").is_file() else "features"


def _head(config: Any, task: str, wanted: Wanted) -> tuple[Any, list[str] | None, list[str]]:
    """The configuration with the head that is wanted, its class names, and notes."""
    if task == "regression":
        if wanted.student:
            config.num_labels, config.problem_type = 1, "regression"
        elif config.num_labels != 1:
            raise UserError(wanted.key, f"{config.num_labels} outputs", "one output, for regression")
        return config, None, []
    if task != "classification":
        return config, None, []
    names = [str(config.id2label[number]) for number in sorted(config.id2label)]
    own = None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
    count = wanted.num_classes
    if not wanted.student or count is None:
        return config, own, []
    if count == config.num_labels and (own is None or wanted.labels is None or set(own) == set(wanted.labels)):
        if own is None and wanted.labels is not None:
            _name_classes(config, wanted.labels)
        return config, own or wanted.labels, []
    note = f"its head for {config.num_labels} other classes is replaced by a new one for {count}"
    config.num_labels = count
    if wanted.labels is not None:
        _name_classes(config, wanted.labels)
    return config, wanted.labels, [note] if _has_head(config) else []


def _name_classes(config: Any, labels: list[str]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}


def _has_head(config: Any) -> bool:
    return str((config.architectures or [""])[0]).endswith("Classification")


def _model(
    transformers: Any, auto: str, folder: Path, config: Any, task: str, wanted: Wanted
) -> tuple[nn.Module, bool, list[str]]:
    """The model, whether its weights were trained, and notes."""
    kind = getattr(transformers, auto)
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        if not wanted.student:
            raise UserError(wanted.key, wanted.reference, "a folder with trained weights", "it holds no *.safetensors")
        try:
            return (
                kind.from_config(config, dtype=torch.float32),
                False,
                ["no weights in the folder: it starts at random"],
            )
        except ValueError as error:
            raise UserError(wanted.key, wanted.reference, f"a model for {task}", first_line(error)) from error
    try:
        # Checkpoints in half precision are trained and measured in float32 like all others.
        module, found = kind.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
            ignore_mismatched_sizes=wanted.student, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        raise UserError(
            wanted.key, wanted.reference, f"a model for {task} with whole weights", first_line(error)
        ) from error
    missing = sorted({*found["missing_keys"], *(str(entry[0]) for entry in found.get("mismatched_keys", ()))})
    if not missing or auto == "AutoModel":
        return module.eval(), True, []
    if not wanted.student:
        shown = ", ".join(missing[:3])
        raise UserError(wanted.key, wanted.reference, f"a model trained for {task}", f"it has no weights for {shown}")
    return (
        module.eval(),
        True,
        [f"new at random: {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"],
    )


def _encoder(folder: Path, wanted: Wanted) -> Network:
    if not _has_tokenizer(folder):
        raise UserError(wanted.key, wanted.reference, "a folder with a tokenizer (tokenizer.json)", "it holds none")
    try:
        encoder = SentenceEncoder.from_folder(folder, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            wanted.key, wanted.reference, "a text encoder with weights and tokenizer", first_line(error)
        ) from error
    if wanted.max_length is not None:
        encoder.max_length = text_length(encoder.transformer.config, encoder.tokenizer, wanted.max_length)
    elif encoder.max_length > USUAL_LENGTH:
        encoder.max_length = USUAL_LENGTH
    return encoder_network(encoder)


def _has_tokenizer(folder: Path) -> bool:
    # Without any of these transformers makes an empty tokenizer of the network's kind, and says nothing.
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARIES)


def _tokenizer(transformers: Any, folder: Path, wanted: Wanted) -> Any:
    borrowed = wanted.teacher.tokenizer if wanted.teacher is not None else None
    if not _has_tokenizer(folder):
        if borrowed is not None:
            return borrowed
        raise UserError(wanted.key, wanted.reference, "a folder with a tokenizer (tokenizer.json)", "it holds none")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            wanted.key, wanted.reference, "a folder with a tokenizer (tokenizer.json)", first_line(error)
        ) from error
