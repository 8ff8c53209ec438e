"""Where in a network: paths of modules without wrappers, patterns, and roles such as the last block of a stack."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from limbeck.errors import UserError

ROLES = ("every_block", "last_stage", "embedding_layer", "head")
# torch.compile, FSDP and activation checkpointing put a wrapper into a module's path, which nobody wants to write.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_STACK = "a network with a stack of like blocks"


class Tap(NamedTuple):
    """One place in a network: a module's ``output`` or ``input``, copied or not."""

    path: str
    kind: str = "output"
    copy: bool = False


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a network by the path it has without the wrappers of torch.compile, DDP and FSDP."""
    while isinstance(model, (DistributedDataParallel, DataParallel)) or "_orig_mod" in model._modules:
        model = model._modules["_orig_mod" if "_orig_mod" in model._modules else "module"]  # type: ignore[assignment]
    found: dict[str, nn.Module] = {}
    # A module that is used in two places has two paths.
    for path, module in model.named_modules(remove_duplicate=False):
        plain = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
        # A wrapper comes before what it wraps, and is what gets called.
        found.setdefault(plain, module)
    return found


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """The stack of like blocks that makes up most of a network: its path and container."""
    best: tuple[int, str, nn.ModuleList | nn.Sequential] | None = None
    for path, module in modules_by_path(model).items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        kinds = [type(child) for child in module if _has_weights(child)]
        if len(kinds) < 2 or len(set(kinds)) > 1:
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        # The outermost of two nested stacks holds at least as many parameters, and comes first.
        if best is None or size > best[0]:
            best = (size, path, module)
    if best is None:
        raise UserError("role", "every_block", _STACK, "name a module path instead")
    return best[1], best[2]


def _block_paths(model: nn.Module) -> list[str]:
    """The blocks of the main stack, or of the main stacks side by side (``layer1`` to ``layer4`` of a ResNet)."""
    groups: dict[tuple[str, type[nn.Module]], list[tuple[str, int]]] = {}
    for path, module in modules_by_path(model).items():
        children = {key: child for key, child in module.named_children() if _has_weights(child)}
        kinds = {type(child) for child in children.values()}
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(kinds) != 1:
            continue
        # The network itself may be the stack; it stands beside nothing.
        parent = path.rpartition(".")[0] if path else "the network"
        for key, child in children.items():
            size = sum(parameter.numel() for parameter in child.parameters())
            groups.setdefault((parent, next(iter(kinds))), []).append((f"{path}.{key}" if path else key, size))
    stacks = [group for group in groups.values() if len(group) > 1]
    if not stacks:
        raise UserError("role", "every_block", _STACK, "name a module path instead")
    # max takes the first of equals, which is the outermost.
    return [path for path, _ in max(stacks, key=lambda group: sum(size for _, size in group))]


def paths_of(model: nn.Module) -> list[str]:
    """All module paths of a network."""
    return [path for path in modules_by_path(model) if path]


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def locate(model: nn.Module, name: str, text: str) -> dict[str, Tap]:
    """The places that a path, pattern or role of :class:`~limbeck.taps.Taps` names, by the names of their signals."""
    path, *marks = text.split(":")
    kinds = [mark for mark in marks if mark in ("input", "output")]
    if len(kinds) > 1 or any(mark not in ("input", "output", "copy") for mark in marks):
        raise UserError(f"tap {name}", text, "PATH, PATH:input or PATH:output, and :copy behind any of them")
    kind, copied = (kinds or ["output"])[0], "copy" in marks
    if path in ROLES:
        found = _role(model, path)
        if path == "every_block":
            return {f"{name}.{index}": Tap(item, kind, copied) for index, item in enumerate(found)}
        return {name: Tap(found[0], kind, copied)}
    known = paths_of(model)
    if any(letter in path for letter in "*?["):
        depth = path.count(".")
        found = [item for item in known if item.count(".") == depth and fnmatch.fnmatchcase(item, path)]
        if not found:
            raise UserError(f"tap {name}", path, known)
        return {f"{name}.{index}": Tap(item, kind, copied) for index, item in enumerate(found)}
    if path not in known:
        raise UserError(f"tap {name}", path, [*known, *ROLES])
    return {name: Tap(path, kind, copied)}


def _role(model: nn.Module, role: str) -> list[str]:
    if role in ("every_block", "last_stage"):
        children = _block_paths(model)
        return children if role == "every_block" else children[-1:]
    kind: tuple[type[nn.Module], ...] = (
        (nn.Embedding, nn.Conv1d, nn.Conv2d) if role == "embedding_layer" else (nn.Linear,)
    )
    found = [path for path, module in modules_by_path(model).items() if path and isinstance(module, kind)]
    if not found:
        raise UserError("role", role, f"a network with a {' or '.join(k.__name__ for k in kind)} layer")
    return found[:1] if role == "embedding_layer" else found[-1:]
