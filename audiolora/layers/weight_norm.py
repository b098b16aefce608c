"""Weight normalisation, old and new, under a parametrization.

``torch.nn.utils.weight_norm`` (the old one) recomputes ``weight`` as a plain attribute in a pre-forward hook, over
whatever stands there. Its newer form is a parametrization, on which another can be stacked. So the old form is turned
into the new one while an adapter is on, and back, bit for bit, when it goes: a model keeps the keys it came with.
"""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from audiolora.layers.geometric import Geometric


def parametrizations_of(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    """What stands between a parametrized module's tensor ``name`` and its parameters."""
    chains = module.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    chain = chains[name]
    assert isinstance(chain, parametrize.ParametrizationList)
    return chain


def own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that it shares with no deep copy of it.

    torch puts the tensors' properties on a class made for the module, and ``copy.deepcopy`` keeps that class: adding or
    removing one here would change every copy.
    """
    cls = type(module)
    if parametrize.is_parametrized(module):
        module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))


def is_weight_norm(chain: parametrize.ParametrizationList) -> bool:
    """Whether torch's weight norm or `Geometric`, functions of their two tensors alone, is the first parametrization
    and the only one before audiolora's."""
    return len(chain) == 2 and type(chain[0]) in (parametrizations._WeightNorm, Geometric)


def modernise_weight_norm(module: nn.Module) -> bool:
    """Replace an old-style weight norm on ``module.weight`` by the parametrization; True if there was one."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm))
    hook = next((hook for hook in hooks if hook.name == "weight"), None)
    if hook is None:
        return False
    g, v = module.weight_g, module.weight_v
    torch.nn.utils.remove_weight_norm(module)
    parametrizations.weight_norm(module, dim=hook.dim)
    # g and v themselves, not values recomputed from W: v's length is free, and optimisers know these objects.
    # Into the dict: accelerate's empty-weights context sends whatever is registered to `meta`.
    chain: Any = parametrizations_of(module, "weight")
    chain._parameters.update(original0=g, original1=v)
    return True


def restore_old_weight_norm(module: nn.Module) -> None:
    """Undo `modernise_weight_norm`: the same g and v, as ``weight_g`` and ``weight_v``."""
    chain: Any = parametrizations_of(module, "weight")
    g, v, dim = chain.original0, chain.original1, chain[0].dim
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    if "weight" not in module._parameters:  # torch leaves a frozen one as a tensor; the old form wants a parameter
        weight: Any = module.weight
        del module.weight
        module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather see the new form; the model has the old
        old_weight_norm(module, dim=dim)
    module._parameters.update(weight_g=g, weight_v=v)
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm))
    hook = next(hook for hook in hooks if hook.name == "weight")
    with torch.no_grad():
        module.weight = hook.compute_weight(module)  # whoever reads it before the next forward sees W


def is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether they are equal, up to what weight norm's division and product may round."""
    tolerance = 32 * torch.finfo(expected.dtype).eps * expected.abs().max()
    return bool(((actual - expected).abs() <= tolerance).all())


def assign(base: nn.Module, name: str, value: torch.Tensor) -> None:
    """Write ``value`` into what the parametrized tensor ``name`` is made of."""
    chain = parametrizations_of(base, name)
    if len(chain) == 1:
        chain.original.copy_(value)  # in place: the storage may be shared, or known to a compiled graph
    else:
        setattr(base, name, value)  # back through weight norm's own inverse
