"""Images read through once before training: those that cannot be decoded are named, and every image gets its id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.data.images import fault, in_threads
from limbeck.data.partition import content_id
from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.data.references import Request

_SHOWN = 5


def checked_images(
    images: Sequence[str | bytes], names: Sequence[str], request: Request
) -> tuple[list[int], Tensor, list[str]]:
    """Positions of the images that can be decoded, their ids, and notes.

    Raises:
        UserError: images cannot be decoded and ``on_corrupt`` is not ``skip``, or none can.
    """
    found: list[tuple[int, str | None]] = []
    for looked in in_threads(_look, images):
        found.append(looked)
        if request.progress is not None:
            request.progress("checking images", len(found), len(images))
    bad = [(names[place], reason) for place, (_, reason) in enumerate(found) if reason is not None]
    good = [place for place, (_, reason) in enumerate(found) if reason is None]
    shown = "; ".join(f"{name}: {reason}" for name, reason in bad[:_SHOWN])
    shown += f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    if bad and (request.on_corrupt != "skip" or not good):
        given = f"{len(bad)} of {len(images)} images that cannot be decoded"
        hint = f"remove them, or leave them out with on_corrupt=skip: {shown}"
        raise UserError(request.key, given, "readable images", hint)
    notes = [f"left out {len(bad)} images that cannot be decoded: {shown}"] if bad else []
    return good, torch.tensor([found[place][0] for place in good], dtype=torch.int64), notes


def _look(image: str | bytes) -> tuple[int, str | None]:
    try:
        content = image if isinstance(image, bytes) else _read(image)
    except OSError as error:
        return 0, error.strerror or str(error)
    return content_id(content), fault(content)


def _read(path: str) -> bytes:
    with open(os.fspath(path), "rb") as stream:
        return stream.read()
