"""Nothing is bypassed in silence: adapted modules that took no part in a model's first forward are named.

Some models compute with a module without calling it: WavLM's attention hands the weights of its projections to one
torch function, so an adapter that wraps a projection is never run. Others have modules that they never use at all. The
adapter then trains nothing, changes nothing, and nothing fails.

`watch_participation` puts a small hook on every layer that an injection made and one on the model itself. A layer takes
part when it is called, or, if it is ours, when its map is asked for W' by whoever reads the base's weight. After the
model's first whole forward the hooks are gone again, and what took no part is in a `BypassedModuleWarning`. What counts
is everything since the injection, so that ``generate``, which runs the encoder by itself first, names no encoder.

Where the model drops layers at random in training (transformers' ``layerdrop``), one forward proves nothing: there the
first forward in eval mode decides, or the first `LAYERDROP_FORWARDS` in training, whichever comes first.

Under ``torch.compile`` the hooks speak while the model is traced, and leave nothing in the graph. There they stay on,
idle: taking them off would make the model compile again.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from audiolora.layers.base import WeightMap, WeightSpaceLayer

LAYERDROP_FORWARDS = 16
"""With layerdrop 0.5 a layer sits out this many forwards in a row once in 65,536 times."""

_NAMES_SHOWN = 8


class BypassedModuleWarning(UserWarning):
    """Adapted modules took no part in the model's first forward; ``modules`` has all their names.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", BypassedModuleWarning)  # stop at the first forward instead
    """

    def __init__(self, message: str, modules: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.modules = modules


class _Watch:
    """What has taken part so far. A copy or a pickle of a model has a watch of its own, with what this one has seen."""

    def __init__(self, seen: set[str], forwards: int = 0, over: bool = False, model: nn.Module | None = None) -> None:
        self.seen, self.forwards, self.over, self.traced = seen, forwards, over, False
        self.key = str(id(self))
        self.model: Callable[[], nn.Module | None] = (lambda: None) if model is None else weakref.ref(model)
        _WATCHES[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watch, (self.seen, self.forwards, self.over)


_WATCHES: weakref.WeakValueDictionary[str, _Watch] = weakref.WeakValueDictionary()
"""By key: dynamo hands constants alone to what it runs while tracing."""


class _TookPart:
    """Forward pre-hook of a layer, or of its map."""

    def __init__(self, watch: _Watch, name: str) -> None:
        self.watch, self.name = watch, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        if isinstance(module, WeightMap) and module.layer._only == ():
            return  # the base's own weight was asked for, not W'
        if torch.compiler.is_dynamo_compiling():
            _see_while_tracing(self.watch.key, self.name)
        else:
            self.watch.seen.add(self.name)


class _Judge:
    """Forward hook of the model."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            _judge_while_tracing(self.watch.key)
        elif not self.watch.over:
            bypassed = _judge(model, self.watch)
            if self.watch.over and not self.watch.traced:
                stop_watching(model)
            _warn(bypassed)


@torch.compiler.assume_constant_result
def _see_while_tracing(key: str, name: str) -> None:
    if key in _WATCHES:
        _WATCHES[key].traced = True
        _WATCHES[key].seen.add(name)


@torch.compiler.assume_constant_result
def _judge_while_tracing(key: str) -> None:
    watch = _WATCHES.get(key)
    model = None if watch is None else watch.model()
    if watch is not None and model is not None and not watch.over:  # no model: a copy; its first forward not compiled
        watch.traced = True
        _warn(_judge(model, watch))


def _judge(model: nn.Module, watch: _Watch) -> tuple[str, ...]:
    """Which modules were bypassed, when it is over; none while it is too early to say."""
    watch.forwards += 1
    # By the hooks that are still there: a layer that was merged and unloaded meanwhile is no concern.
    watched = dict.fromkeys(hook.name for _, hook in _hooks(model) if isinstance(hook, _TookPart))
    bypassed = tuple(name for name in watched if name not in watch.seen)
    early = bypassed and model.training and watch.forwards < LAYERDROP_FORWARDS and _drops_layers(model)
    watch.over = not early
    return () if early else bypassed


def _warn(bypassed: tuple[str, ...]) -> None:
    if bypassed:
        warnings.warn(BypassedModuleWarning(_message(bypassed), bypassed), stacklevel=3)


def watch_participation(model: nn.Module, adapter_name: str) -> None:
    """Name, after ``model``'s first forward, each module with this adapter that took no part in it.

    An earlier watch that has not ended yet is replaced.

    Args:
        model: the network that PEFT put the adapter into.
        adapter_name: PEFT's name for it.

    Example:
        >>> import audiolora
        >>> from peft import LoraConfig, get_peft_model
        >>> with audiolora.enabled():  # which calls this at each injection
        ...     model = get_peft_model(nn.Sequential(nn.Conv1d(1, 1, 1)), LoraConfig(target_modules=["0"]))
        >>> model(torch.zeros(1, 1, 4)).shape
        torch.Size([1, 1, 4])
    """
    stop_watching(model)
    layers = [(name, layer) for name, layer in _outermost_layers(model) if adapter_name in _adapters_of(layer)]
    if not layers:
        return
    watch = _Watch(set(), model=model)
    for name, layer in layers:
        hook = _TookPart(watch, name)
        layer.register_forward_pre_hook(hook)
        if isinstance(layer, WeightSpaceLayer):
            for part in layer.modules():
                if isinstance(part, WeightMap) and part.name == "weight":
                    part.register_forward_pre_hook(hook)
    model.register_forward_hook(_Judge(watch))


def stop_watching(model: nn.Module) -> None:
    """Take every hook of `watch_participation` off the model."""
    for hooks, hook in list(_hooks(model)):
        for key in [key for key, each in hooks.items() if each is hook]:
            del hooks[key]


def _hooks(model: nn.Module) -> Iterator[tuple[dict[int, Any], Any]]:
    """Our hooks in the model, each with the dict that holds it."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for hook in hooks.values():
                if isinstance(hook, (_TookPart, _Judge)):
                    yield hooks, hook


def _outermost_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The adapted layers that LoRA, LoHa and LoKr made; not one inside another, which the outer one may use."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer) or name.startswith(inside):
            continue
        inside = (*inside, name + ".")
        if isinstance(module, (LoraLayer, LycorisLayer, WeightSpaceLayer)):
            yield name, module


def _adapters_of(layer: Any) -> set[str]:
    return set(layer._get_available_adapters())


def _drops_layers(model: nn.Module) -> bool:
    """Whether some ``layerdrop`` of a module or of its configuration is not zero."""
    holders = (holder for module in model.modules() for holder in (module, getattr(module, "config", None)))
    return any(
        name.endswith("layerdrop") and isinstance(value, (int, float)) and value > 0
        for holder in holders
        for name, value in getattr(holder, "__dict__", {}).items()
    )


def _message(bypassed: tuple[str, ...]) -> str:
    more = len(bypassed) - _NAMES_SHOWN
    names = ", ".join(bypassed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return (
        f"{names}: adapted, but took no part in the model's first forward, so the adapter there changes nothing and "
        "learns nothing. The model computes without calling these modules (it may read a weight past the adapter), or "
        "does not use them; leave them out of target_modules. If they were skipped on purpose, as by a pass through "
        "the decoder alone, this is harmless."
    )
