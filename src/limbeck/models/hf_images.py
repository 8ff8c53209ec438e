"""Configurations of transformers' image processors, read and written without the processors themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from limbeck.data.images import INTERPOLATIONS, ImageFormat
from limbeck.errors import UserError
from limbeck.models.network import read_json, write_json

FILE = "preprocessor_config.json"
_MODES = {int(mode): name for name, mode in INTERPOLATIONS.items()}


def read_image_format(folder: Path, key: str) -> ImageFormat | None:
    """The image format of a folder's ``preprocessor_config.json``; None without that file.

    Raises:
        UserError: it asks for a step that :class:`ImageFormat` does not have.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    config = read_json(path, key)
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    if config.get("do_pad") or config.get("rescale_offset"):
        raise UserError(key, f"{path} with padding or an offset", "processors that resize, crop, scale and normalise")
    size, fit, resize = _geometry(config, kind, path, key)
    normalize = config.get("do_normalize", True)
    mean = tuple(config.get("image_mean") or (0.5, 0.5, 0.5)) if normalize else (0.0, 0.0, 0.0)
    std = tuple(config.get("image_std") or (0.5, 0.5, 0.5)) if normalize else (1.0, 1.0, 1.0)
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    mode = config.get("resample", int(Image.Resampling.BILINEAR))
    return ImageFormat(size, resize, fit, _MODES[int(mode)], mean, std, scale)


def _geometry(config: dict[str, Any], kind: str, path: Path, key: str) -> tuple[tuple[int, int], str, tuple[int, int]]:
    size = config.get("size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else size if isinstance(size, int) else None
    # Old files write a bare number: a square for ViT, the shorter side for the processors that crop.
    whole = _pair(size) if not (edge and (isinstance(size, dict) or config.get("do_center_crop"))) else None
    if kind.startswith("ConvNext") and edge:
        # Small ConvNexts look at the middle of a larger image; from 384 pixels on the whole image is squeezed.
        if edge >= 384:
            return (edge, edge), "stretch", (edge, edge)
        larger = int(edge / float(config.get("crop_pct") or 224 / 256))
        return (edge, edge), "cover", (larger, larger)
    crop = _pair(config.get("crop_size")) if config.get("do_center_crop") else None
    if whole is not None:
        return crop or whole, "stretch", whole
    if edge and crop is not None:
        return crop, "cover", (int(edge), int(edge))
    allowed = "a size with height and width, or a shortest edge and a crop"
    raise UserError(key, f"{path} with size {size}", allowed, "batches need images of one size")


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def write_image_format(image_format: ImageFormat, folder: Path) -> None:
    """Write a ``preprocessor_config.json`` that transformers and :func:`read_image_format` read alike."""
    cover = image_format.fit == "cover"
    high, wide = image_format.resize
    crop = {"height": image_format.size[0], "width": image_format.size[1]}
    config: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor"
        if cover or crop != {"height": high, "width": wide}
        else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(high, wide)} if cover else {"height": high, "width": wide},
        "resample": int(INTERPOLATIONS[image_format.interpolation]),
        "do_rescale": True,
        "rescale_factor": image_format.scale,
        "do_normalize": True,
        "image_mean": list(image_format.mean),
        "image_std": list(image_format.std),
    }
    if config["image_processor_type"] == "CLIPImageProcessor":
        config |= {"do_center_crop": True, "crop_size": crop}
    write_json(folder / FILE, config)
