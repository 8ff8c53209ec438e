"""Weights from one network to another: moving averages, blends, kept layers and narrower copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.schedules import Schedule, at
from limbeck.taps import blocks, modules_by_path

BUFFERS = ("copy", "blend", "keep")


class WeightTransfer:
    """``target <- momentum * target + (1 - momentum) * source``, tensor by tensor.

    Args:
        source, target: the networks; their tensors are matched by name.
        names: maps a target's tensor name to the source's, for networks that are built differently. A function may
            return None, and a mapping may lack a name, to leave a tensor alone. By default the names are the same and
            every target tensor must find its source.
        momentum: 0 copies; 0.999 is a slow moving average; may be a schedule over training.
        buffers: what happens to BatchNorm statistics and their like: ``copy``, ``blend`` like the weights, ``keep``.
            Integers (counters) are copied either way.
    """

    def __init__(
        self,
        source: nn.Module,
        target: nn.Module,
        *,
        names: Callable[[str], str | None] | Mapping[str, str] | None = None,
        momentum: float | Schedule = 0.0,
        buffers: str = "copy",
    ) -> None:
        if buffers not in BUFFERS:
            raise UserError("buffers", buffers, BUFFERS)
        self.momentum, self.buffers = momentum, buffers
        weights, states = _slots(target, "_parameters"), _slots(target, "_buffers")
        if isinstance(names, Mapping):
            unknown = next((name for name in names if name not in weights and name not in states), None)
            if unknown is not None:
                raise UserError("names", unknown, [*weights, *states])
        rename = names.get if isinstance(names, Mapping) else names or (lambda name: name)
        self._weights = _pairs(weights, _slots(source, "_parameters"), rename)
        self._buffers = [] if buffers == "keep" else _pairs(states, _slots(source, "_buffers"), rename)
        if weights and not self._weights:
            raise UserError("names", "a map that matches nothing", "one that finds weights of the source")

    @torch.no_grad()
    def __call__(self, progress: float = 0.0) -> None:
        """Move the target once; ``progress`` in [0, 1] drives a momentum schedule."""
        momentum = at(self.momentum, progress)
        _move(self._weights, momentum)
        _move(self._buffers, momentum if self.buffers == "blend" else 0.0)


class _Slot(NamedTuple):
    """Where a tensor lives. Moving a network to a device, or a line such as ``self.centre = ...``, puts a new tensor
    into the same slot, and a reference to the old one would go stale."""

    holder: dict[str, Tensor | None]
    key: str

    def tensor(self) -> Tensor:
        tensor = self.holder[self.key]
        if tensor is None:
            raise UserError(f"weight {self.key}", "nothing", "a tensor, as when the transfer was made")
        return tensor


def _slots(network: nn.Module, kind: str) -> dict[str, _Slot]:
    """Name -> place of every parameter or buffer; a tied tensor has a place under each of its names."""
    return {
        f"{path}.{key}" if path else key: _Slot(getattr(module, kind), key)
        for path, module in network.named_modules(remove_duplicate=False)
        for key, tensor in getattr(module, kind).items()
        if tensor is not None
    }


def _pairs(
    targets: Mapping[str, _Slot], sources: Mapping[str, _Slot], rename: Callable[[str], str | None]
) -> list[tuple[_Slot, _Slot]]:
    pairs: list[tuple[_Slot, _Slot]] = []
    seen: set[int] = set()
    for name, target in targets.items():
        wanted = rename(name)
        # A tied tensor must move once, not once for each of its names.
        if wanted is None or id(target.tensor()) in seen:
            continue
        seen.add(id(target.tensor()))
        if wanted not in sources:
            raise UserError(f"weight {name}", wanted, sources)
        given, kept = sources[wanted].tensor().shape, target.tensor().shape
        if given != kept:
            raise UserError(f"weight {name}", list(given), f"a tensor of shape {list(kept)}")
        pairs.append((target, sources[wanted]))
    return pairs


def _move(pairs: list[tuple[_Slot, _Slot]], momentum: float) -> None:
    moving, copied = [], []
    for to, source in pairs:
        target, new = to.tensor(), source.tensor()
        if momentum == 0.0 or not (target.is_floating_point() or target.is_complex()):
            # Counters have no average; the newest value is the right one.
            copied.append((target, new))
        else:
            moving.append((target, new.to(target.dtype)))
    if moving:
        targets, sources = [list(side) for side in zip(*moving, strict=True)]
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
    if copied:
        targets, sources = [list(side) for side in zip(*copied, strict=True)]
        torch._foreach_copy_(targets, sources)


@torch.no_grad()
def blend(models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> nn.Module:
    """A new network whose weights are the weighted mean of like networks' (a model soup).

    Args:
        models: networks with the same tensors; counters are the first's.
        weights: one non-negative number per network, scaled to sum to 1; equal by default.
    """
    if not models:
        raise UserError("models", "none", "at least one network")
    given = [float(weight) for weight in weights] if weights is not None else [1.0] * len(models)
    if len(given) != len(models) or any(not weight >= 0 for weight in given) or not sum(given) > 0:
        raise UserError("weights", given, f"{len(models)} non-negative numbers, not all zero")
    shares = [weight / sum(given) for weight in given]
    blended = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    for number, state in enumerate(states):
        odd = next((n for n in {**states[0], **state} if _shape(state, n) != _shape(states[0], n)), None)
        if odd is not None:
            raise UserError(f"models: {odd} of network {number}", _shape(state, odd), str(_shape(states[0], odd)))
    for name, target in blended.state_dict().items():
        if target.is_floating_point() or target.is_complex():
            target.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
    return blended


def _shape(state: Mapping[str, Tensor], name: str) -> list[int] | str:
    return list(state[name].shape) if name in state else "missing"


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """A copy of a network with only the given blocks of its main stack, in the given order.

    Negative numbers count from the end. A transformers configuration is brought in line (``num_hidden_layers`` and
    the lists that hold one entry per layer), so that the copy saves and loads in its own ecosystem.

    Raises:
        UserError: there is no stack of like blocks, a block does not exist, or the configuration could not say what
            is left (encoder-decoder networks, stages of different widths).
    """
    path, stack = blocks(model)
    depth = len(stack)
    wanted = [index + depth if index < 0 else index for index in layers]
    if not wanted or any(not 0 <= index < depth for index in wanted):
        raise UserError("layers", ",".join(map(str, layers)), f"one or more of 0 to {depth - 1}")
    if any(next(block.parameters(), None) is None for block in stack):
        hint = "between its blocks it has parts without weights, which would fall away"
        raise UserError("layers", f"the stack {path or 'itself'}", "a network with a stack of nothing but blocks", hint)
    student = copy.deepcopy(model)
    _restack(modules_by_path(student)[path], wanted)
    _fit_configs(student, path, depth, wanted)
    return student


def _restack(stack: nn.Module, wanted: list[int]) -> None:
    """Keep the wanted children, in place: whatever else the container is or holds stays."""
    old = list(stack._modules.items())
    stack._modules.clear()
    for place, index in enumerate(wanted):
        name, block = old[index]
        # A layer asked for twice must not share its weights with itself.
        block = copy.deepcopy(block) if index in wanted[:place] else block
        name = str(place) if name.isdigit() else f"{name}_{place}" if name in stack._modules else name
        stack._modules[name] = block
        # Decoder layers know their number: the key-value cache is indexed by it.
        for module in block.modules() if block is not None else ():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = place  # type: ignore[assignment]


_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _fit_configs(model: nn.Module, path: str, depth: int, wanted: list[int]) -> None:
    """Bring in line the configurations on the way to the stack and inside it; another tower's stays as it is."""
    modules = modules_by_path(model)
    above = [module for name, module in modules.items() if not name or path == name or path.startswith(f"{name}.")]
    inside = [module for name, module in modules.items() if name.startswith(f"{path}.")]
    configs = {id(module.config): module.config for module in [*above, *inside] if hasattr(module, "config")}
    for config in configs.values():
        _fit_config(config, depth, wanted)
    pretrained = next((module for module in above if getattr(module, "config_class", None) is not None), None)
    if pretrained is not None and not _opens_again(pretrained):
        kind = f"a stack of {depth} in {type(pretrained).__name__}"
        allowed = f"a network whose configuration says {depth} in one of {', '.join(_DEPTHS)}"
        raise UserError("layers", kind, allowed, "of an encoder-decoder, take the encoder or the decoder")


def _opens_again(model: Any) -> bool:
    """Whether the configuration describes the network that is left."""
    try:
        with torch.device("meta"):
            twin = type(model)(model.config)
    except Exception:
        return False
    shapes, wanted = ({name: tensor.shape for name, tensor in m.state_dict().items()} for m in (twin, model))
    return shapes == wanted


def _fit_config(config: Any, depth: int, wanted: list[int]) -> None:
    lists = [
        (key, value)
        for key, value in vars(config).items()
        if key.startswith("layer") and isinstance(value, (list, tuple)) and len(value) == depth
    ]
    for key in _DEPTHS:
        if getattr(config, key, None) == depth:
            setattr(config, key, len(wanted))
    for key, value in lists:
        setattr(config, key, type(value)(value[index] for index in wanted))


@torch.no_grad()
def slice_width(source: nn.Module, target: nn.Module, *, choose: str = "even") -> nn.Module:
    """Start a narrower network from slices of a wider one of the same kind.

    Every target tensor takes rows, columns, ... of its namesake; axes of one length pair (say 384 -> 192) always take
    the same positions, so that what one layer writes is what the next one reads. Tensors without a namesake, or with
    another number of axes, keep their own start.

    Args:
        choose: ``even`` spreads the kept positions, and also fits layers that hold queries, keys and values in one
            tensor; ``leading`` keeps the first.
    """
    if choose not in ("even", "leading"):
        raise UserError("choose", choose, ("even", "leading"))
    given = source.state_dict()
    shared = {
        name: tensor
        for name, tensor in target.state_dict().items()
        if name in given and given[name].dim() == tensor.dim()
    }
    if not shared:
        raise UserError(
            "target", type(target).__name__, f"a narrower {type(source).__name__}; no tensor has a namesake"
        )
    for name, tensor in shared.items():
        if any(new > old for new, old in zip(tensor.shape, given[name].shape, strict=True)):
            raise UserError(f"width of {name}", list(tensor.shape), f"at most {list(given[name].shape)}")
    for name, tensor in shared.items():
        wide = given[name]
        for axis, (new, old) in enumerate(zip(tensor.shape, wide.shape, strict=True)):
            if new < old:
                wide = wide.index_select(axis, _positions(old, new, choose).to(wide.device))
        tensor.copy_(wide)
    return target


def _positions(old: int, new: int, choose: str) -> Tensor:
    return torch.arange(new) if choose == "leading" else (torch.arange(new) * old) // new


def shadow_of(model: nn.Module) -> nn.Module:
    """A frozen copy in eval mode, for averages and snapshots."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def copy_state(module: nn.Module) -> dict[str, Any]:
    """The state of a module, cloned, so that later training cannot change it."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
