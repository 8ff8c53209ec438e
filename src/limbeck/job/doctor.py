"""Whether this installation can do its work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

_NEEDED = ("torch", "lightning", "numpy", "safetensors", "pyarrow")
_EXTRAS = {
    "language": ("transformers", "sentence-transformers"),
    "vision": ("timm", "kornia"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "many": ("ray",),
}


def examine() -> list[dict[str, Any]]:
    """Checks as ``{"what", "state": ok | note | bad, "found"}``."""
    checks = [_check("python", "ok", platform.python_version())]
    for package in _NEEDED:
        version = _version(package)
        checks.append(_check(package, "ok" if version else "bad", version or "not installed"))
    for extra, packages in _EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        found = ", ".join(f"{package} {_version(package) or 'missing'}" for package in packages)
        hint = f"; pip install 'limbeck[{extra}]'" if missing else ""
        checks.append(_check(f"extra {extra}", "note" if missing else "ok", found + hint))
    if _version("torch"):
        checks += _torch()
    checks += _folders()
    return checks


def _torch() -> list[dict[str, Any]]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bfloat16 = "bfloat16 is fast" if torch.cpu._is_avx512_bf16_supported() else "bfloat16 is emulated"
    return [
        _check("processor", "ok", f"{cores} cores, torch uses {torch.get_num_threads()} threads, {bfloat16}"),
        _check(
            "accelerator", "ok" if devices else "note", ", ".join(devices) or "none: everything runs on the processor"
        ),
    ]


def _folders() -> list[dict[str, Any]]:
    from limbeck.data.artefacts import listing
    from limbeck.data.store import cache_folder

    folder = cache_folder()
    free = shutil.disk_usage(folder).free
    rows = listing()
    here = sum(bool(row["present"]) for row in rows)
    writable = os.access(folder, os.W_OK)
    return [
        _check("cache folder", "ok" if writable else "bad", f"{folder}{'' if writable else ', not writable'}"),
        _check("free disk", "ok" if free > 2e9 else "note", f"{free / 1e9:.1f} GB"),
        _check(
            "data",
            "ok" if here == len(rows) else "note",
            f"{here} of {len(rows)} artefacts here; limbeck data get NAME",
        ),
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check(what: str, state: str, found: str) -> dict[str, Any]:
    return {"what": what, "state": state, "found": found}
