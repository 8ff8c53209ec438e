"""``folder:DIR``: images in sub-folders that name their classes, with or without train, validation and test."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from limbeck.cache.fingerprint import fingerprint_text
from limbeck.data.image_check import checked_images
from limbeck.data.references import DataSet, Request
from limbeck.data.split import Split
from limbeck.data.tables import SPLIT_WORDS, near_files
from limbeck.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_image_folder(request: Request) -> DataSet:
    """Read the names of a folder's images, check that every one can be decoded, and split them.

    Raises:
        UserError: no such folder, no images, fewer than two classes, classes that differ between splits, or images
            that cannot be decoded.
    """
    root, key = request.path, request.key
    if request.task not in (None, "classification", "embedding", "features"):
        raise UserError("task", request.task, "classification, embedding or features for a folder of images")
    if not root.is_dir():
        raise UserError(key, request.reference, near_files(root, ("/",)), "no such folder")
    roots, classes = _layout(root, request)
    notes, given, known = [], {}, {}
    for name, folder in roots.items():
        paths, targets = _images(folder, classes)
        if not paths:
            raise UserError(f"{key} {name}", str(folder), f"images ({', '.join(ENDINGS)}) in the class folders")
        good, ids, left_out = checked_images(paths, [os.path.relpath(path, root) for path in paths], request)
        notes += left_out
        target = torch.tensor([targets[place] for place in good], dtype=torch.int64) if classes else None
        given[name] = Split([paths[place] for place in good], target, ids)
        known[name] = [ids, target]
    task = request.task or ("classification" if classes else "embedding")
    notes.insert(0, f"{len(classes)} classes, one per folder" if classes else "images without classes")
    splits, cut = request.completed(given, stratify=bool(classes))
    return DataSet(
        splits,
        "image",
        task,
        "asked for" if request.task else f"a folder of images {'with' if classes else 'without'} class folders",
        classes or None,
        len(classes) or None,
        name=root.resolve().name,
        fingerprint={"data": fingerprint_text(known, classes)},
        notes=notes + cut,
    )


def _layout(root: Path, request: Request) -> tuple[dict[str, Path], list[str]]:
    """The folder of every split, and the class names in order."""
    key = request.key
    folders = _folders(root)
    splits = {SPLIT_WORDS[name.lower()]: root / name for name in folders if name.lower() in SPLIT_WORDS}
    if not splits:
        roots = {"train": root}
    elif "train" in splits:
        roots = {name: splits[name] for name in ("train", "validation", "test") if name in splits}
    else:
        raise UserError(key, f"{request.reference} with {', '.join(folders)}", "a folder train beside them")
    classes = _folders(roots["train"])
    if not classes:
        if request.task == "classification":
            raise UserError(key, request.reference, "a sub-folder per class", _inside(roots["train"]))
        return roots, []
    if len(classes) < 2 and request.task in (None, "classification"):
        raise UserError(key, f"{request.reference} with one class, {classes[0]}", "at least two class folders")
    ordered = request.labels or classes
    for name, folder in roots.items():
        for found in _folders(folder):
            if found not in ordered:
                raise UserError(f"{key} {name} class", found, ordered, "every split has the classes of train")
    return roots, ordered


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, classes: list[str]) -> tuple[list[str], list[int]]:
    paths: list[str] = []
    targets: list[int] = []
    for number, folder in enumerate([root / name for name in classes] or [root]):
        found = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
        paths += sorted(str(path) for path in found)
        targets += [number] * len(found)
    return paths, targets


def _inside(root: Path) -> str:
    names = sorted(entry.name for entry in root.iterdir())[:6]
    return f"it holds {', '.join(names) or 'nothing'}"
