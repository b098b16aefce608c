"""EVA on convolutions (Paischer et al., arXiv 2410.07170): A starts as the principal components of what a kernel sees.

PEFT's ``initialize_lora_eva_weights`` gathers the inputs of adapted Linears and shares the ranks out by the variance
that each explains. What a kernel sees at one position is the window under it, C_in/g · k numbers, of each group by
itself. The windows are taken where the convolution runs, so that padding of any kind (circular, causal, in a subclass's
forward) is in them.

PEFT's hooks take an input in their first call; ours hand them the windows instead. A function that prepares the inputs
(``prepare_layer_inputs_fn``) is for token sequences and is not asked for a convolution.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import eva
from torch import nn
from torch.overrides import TorchFunctionMode

from audiolora.conv.geometry import resolve_padding
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.lora_linear import LoraLinear

_load_eva_state_dict = eva._load_eva_state_dict


class _Windows(TorchFunctionMode):
    """Collects the windows under a kernel of this shape, of every ``conv1d`` that runs meanwhile."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.found = shape, []  # type: tuple[torch.Size, list[torch.Tensor]]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv1d and (args[1] if len(args) > 1 else kwargs["weight"]).shape == self.shape:
            with torch._C.DisableTorchFunction():
                self.found.append(self._of(*args, **kwargs))
        return func(*args, **kwargs)

    def _of(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> torch.Tensor:
        return windows(input, self.shape[2], stride, padding, dilation, groups)


def windows(x: torch.Tensor, k: int, stride: Any, padding: Any, dilation: Any, groups: int) -> torch.Tensor:
    """What a kernel of length k sees of x (N, C_in, L): (N · L_out · g, C_in/g · k).

    Args:
        x: or (C_in, L).
        k: the kernel's length.
        stride, padding, dilation, groups: as ``F.conv1d`` takes them.

    Example:
        >>> windows(torch.arange(5.0).view(1, 1, 5), 2, 1, 0, 2, 1)
        tensor([[0., 2.],
                [1., 3.],
                [2., 4.]])
    """
    x, geometry = resolve_padding(x if x.dim() == 3 else x[None], k, stride, padding, dilation, groups)
    x = F.pad(x, (geometry.padding, geometry.padding))
    seen = x.unfold(2, geometry.dilation * (k - 1) + 1, geometry.stride)[..., :: geometry.dilation]
    return seen.unflatten(1, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(0, 2).flatten(1)


def _of_windows(call: Callable[..., None]) -> Callable[..., None]:
    """A hook of PEFT's that is given windows where it stands on a convolution of ours."""

    def ours(self: Any, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, LoraConv1d) and not isinstance(module, LoraLinear):
            collected = _Windows(module.base_tensor().shape)
            with torch.no_grad(), collected:
                module.base_layer(*args)
            if not collected.found:
                raise ValueError(
                    f"{module.path}: init_lora_weights='eva' needs the inputs of a convolution, and none ran in the "
                    "module's forward; leave it out of target_modules"
                )
            self._prepare_layer_inputs_fn = lambda states, model_input, name: states
            args = torch.cat(collected.found)
        call(self, module, args, output)

    return ours


def load_eva_state_dict(model: nn.Module, eva_state_dict: dict[str, torch.Tensor], adapter_name: str) -> None:
    """PEFT's function of this name; components of windows (r, C_in/g · k) become A (r, C_in/g, k)."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraConv1d) and name in eva_state_dict:
            components, A = eva_state_dict[name], layer.lora_A[adapter_name].weight
            eva_state_dict[name] = components.view(len(components), *A.shape[1:])
            if not len(components):  # of rank 0: PEFT puts the base back
                layer.detach_map()
    _load_eva_state_dict(model, eva_state_dict, adapter_name)


REPLACEMENTS: tuple[tuple[Any, str, Any], ...] = (
    (eva, "_load_eva_state_dict", load_eva_state_dict),
    (eva.HashHook, "__call__", _of_windows(eva.HashHook.__call__)),
    (eva.SVDHook, "__call__", _of_windows(eva.SVDHook.__call__)),
)
"""Where PEFT looks a function up, its name there, and ours."""
