"""Taps: named tensors of unmodified networks, by module path, pattern or role.

A tap reads; :func:`edit` changes a tensor on its way, inside a context that always undoes it; :func:`swap` puts
another module in a network's place. Captured tensors live outside the network and are gone after each step.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.module_paths import ROLES, Tap, blocks, locate, modules_by_path, paths_of

__all__ = ["ROLES", "Tap", "Taps", "blocks", "edit", "first_tensor", "modules_by_path", "paths_of", "swap"]

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class Taps:
    """Named tensors read while a network runs.

    Args:
        model: any ``nn.Module``; it is not changed but for forward hooks, which :meth:`close` removes.
        paths: name -> where. A module path (``encoder.layer.3``) gives one signal of that name; a pattern
            (``encoder.layer.*``) or the role ``every_block`` gives ``name.0``, ``name.1``, ... in the network's order;
            the roles ``last_stage``, ``embedding_layer`` and ``head`` give one. ``:input`` behind a path reads what the
            module is given instead of what it returns; ``:copy`` copies the tensor, for one that a later layer writes
            into (``layer1.bn2`` of a residual network).

    Example::

        taps = Taps(model, {"mid": "encoder.layer.3"})
        with taps.capture() as signals:
            model(**batch)
        signals["mid"]

    A copy of the network (``copy.deepcopy``, an EMA shadow, a pickled file) has no taps; a copy of an object that holds
    both the network and its taps has taps of its own.
    """

    def __init__(self, model: nn.Module, paths: Mapping[str, str]) -> None:
        self.paths = dict(paths)
        self.where = {name: tap for key, path in self.paths.items() for name, tap in locate(model, key, path).items()}
        self._model = weakref.ref(model)
        self._store = _Store()
        modules, handles = modules_by_path(model), []
        for name, tap in self.where.items():
            if isinstance(modules[tap.path], _NEVER_CALLED):
                kind = type(modules[tap.path]).__name__
                raise UserError(f"tap {name}", tap.path, f"a module that is called; a {kind} only holds others")
            handles.append(_attach(modules[tap.path], tap, _Read(self._store, name, tap)))
        self._close = weakref.finalize(self, _remove, handles)
        if handles:
            _compile_anew()

    def __reduce__(self) -> tuple[Any, ...]:
        return Taps, (self._model(), self.paths)

    @contextmanager
    def capture(self, until: Collection[str] = ()) -> Iterator[dict[str, Tensor]]:
        """Collect the tapped tensors of the forward passes inside; the last pass of a module counts.

        Args:
            until: names of taps. As soon as all of them are read the forward pass ends, and with it the ``with`` block:
                later layers do not run, and nothing is returned. The tensors are the same; of a module that runs
                several times the first pass counts. Compiled code runs to its end.

        Raises:
            UserError: a later layer wrote into a tapped tensor, so that it no longer is what its module gave; or
                ``until`` names no tap.
        """
        for name in until:
            if name not in self.where:
                raise UserError("until", name, self.where)
        signals: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        store = self._store
        before = store.signals, store.versions, store.until
        store.signals, store.versions, store.until = signals, versions, frozenset(until)
        try:
            yield signals
        except _Enough as enough:
            # Taps on a network inside this one, or around it, may have captures of their own under way.
            if enough.signals is not signals:
                raise
        finally:
            store.signals, store.versions, store.until = before
        for name, version in versions.items():
            if name in signals and signals[name]._version != version:
                path = f"{self.where[name].path}:{self.where[name].kind}".removesuffix(":output")
                raise UserError(
                    f"tap {name}", path, "a tensor that later layers leave alone", f"read a copy of it: {path}:copy"
                )

    def close(self) -> None:
        """Remove the hooks."""
        self._close()


class _Store:
    def __init__(self) -> None:
        self.signals: dict[str, Tensor] | None = None
        self.versions: dict[str, int] = {}
        self.until: frozenset[str] = frozenset()


class _Enough(BaseException):
    """Ends a forward pass whose remaining layers nobody needs; no ``except Exception`` on the way may keep it."""

    def __init__(self, signals: dict[str, Tensor]) -> None:
        super().__init__()
        self.signals = signals


class _Silent:
    """What a hook becomes in a copy of its network."""

    def __call__(self, *args: Any) -> None:
        return None


class _Read:
    """Puts a module's tensor into the store."""

    def __init__(self, store: _Store, name: str, tap: Tap) -> None:
        self.store, self.name, self.copy = store, name, tap.copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _Silent, ()

    def __call__(self, value: Any) -> Any:
        store = self.store
        if store.signals is None:
            return value
        tensor = first_tensor(value, f"tap {self.name}")
        if self.copy:
            tensor = tensor.clone()
        elif not torch.compiler.is_compiling():
            if tensor.is_inference():
                # It has no version to compare at the end, and autograd may not save it: so it is copied at once.
                with torch.inference_mode(False):
                    tensor = tensor.clone()
            else:
                store.versions[self.name] = tensor._version
        store.signals[self.name] = tensor
        if store.until and not torch.compiler.is_compiling() and store.until <= store.signals.keys():
            raise _Enough(store.signals)
        return value


class _Edit:
    """Changes a module's tensor and leaves what surrounds it as it was."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def __reduce__(self) -> tuple[Any, ...]:
        return _Silent, ()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.change(value)
        first = first_tensor(value, "edit")
        changed = self.change(first)
        if isinstance(value, Mapping):
            edited: Any = copy.copy(value)
            for key in [key for key, item in value.items() if item is first]:
                edited[key] = changed
            return edited
        items = [changed if item is first else item for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


class _OnOutput:
    """A forward hook; gives its module's output to ``act``."""

    def __init__(self, act: _Read | _Edit) -> None:
        self.act = act

    def __reduce__(self) -> tuple[Any, ...]:
        return _Silent, ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.act(output)


class _OnInput:
    """A hook before the module, which may write into its own input; keyword arguments count after the others."""

    def __init__(self, act: _Read | _Edit) -> None:
        self.act = act

    def __reduce__(self) -> tuple[Any, ...]:
        return _Silent, ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if any(isinstance(value, Tensor) for value in args):
            return self.act(args), given
        return args, self.act(given)


def _attach(module: nn.Module, tap: Tap, act: _Read | _Edit) -> Any:
    if tap.kind == "input":
        return module.register_forward_pre_hook(_OnInput(act), with_kwargs=True)
    return module.register_forward_hook(_OnOutput(act))


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def _compile_anew() -> None:
    # Compiled code does not notice that hooks come and go: it would go on without them, or with them.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def first_tensor(value: Any, name: str = "tap") -> Tensor:
    """The tensor that a module's output stands for: itself, or the first of a tuple or mapping."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for item in items:
        if isinstance(item, Tensor):
            return item
    raise UserError(name, type(value).__name__, "a module that returns a tensor, or a tuple or mapping that holds one")


@contextmanager
def edit(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace tensors on their way: ``{path: function}``, where the function sees a module's output.

    Paths, patterns, roles and ``:input`` are those of :class:`Taps`. Of a tuple or mapping the first tensor is changed
    and the rest passed on as it was. The hooks are removed on every way out of the context. Compiled code is compiled
    anew inside and afterwards, so with torch.compile edit many steps at once.
    """
    handles: list[Any] = []
    try:
        modules = modules_by_path(model)
        for path, change in changes.items():
            for tap in locate(model, "edit", path).values():
                handles.append(_attach(modules[tap.path], tap, _Edit(change)))
        _compile_anew()
        yield
    finally:
        _remove(handles)
        _compile_anew()


def swap(model: nn.Module, path: str, module: nn.Module, *, example: Any = None) -> nn.Module:
    """Put ``module`` where ``path`` was and return what stood there.

    Args:
        example: an input of the network (a tensor, or a mapping of keyword arguments). When given, the network runs on
            it once, and a module that cannot take what the old one is given, or returns another shape or type, is
            refused before anything changes.
    """
    modules = modules_by_path(model)
    if not path or path not in modules:
        raise UserError("path", path, paths_of(model))
    old = modules[path]
    if example is not None:
        _check_swap(model, path, old, module, example)
    parent_path, _, leaf = path.rpartition(".")
    setattr(modules[parent_path], leaf, module)
    return old


def _check_swap(model: nn.Module, path: str, old: nn.Module, new: nn.Module, example: Any) -> None:
    seen: list[tuple[Any, Any, str]] = []

    def look(_: nn.Module, args: Any, given: Any, output: Any) -> None:
        seen.append((args, given, _shape_of(output)))

    handle = old.register_forward_hook(look, with_kwargs=True)
    modes = [(part, part.training) for network in (model, new) for part in network.modules()]
    try:
        with torch.no_grad():
            model.eval()(**example) if isinstance(example, Mapping) else model.eval()(example)
            handle.remove()
            if not seen:
                raise UserError("path", path, "a module that the network calls on the example")
            args, given, before = seen[-1]
            try:
                after = _shape_of(new.eval()(*args, **given))
            except Exception as error:
                reason = str(error).strip().split("\n")[0]
                raise UserError(path, f"a module that fails: {reason}", f"one that returns {before}") from error
    finally:
        handle.remove()
        for part, training in modes:
            part.training = training
    if after != before:
        raise UserError(path, f"a module that returns {after}", f"one that returns {before}")


def _shape_of(output: Any) -> str:
    tensor = first_tensor(output)
    return f"{list(tensor.shape)} {tensor.dtype}"
