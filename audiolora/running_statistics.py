"""A frozen normalisation stays frozen: BatchNorm's running statistics move in training mode, gradient or not.

They belong to the base and no adapter file holds them, so an adapter trained while they moved would be another function
when it is loaded again, on whatever base it is loaded. And a layer that normalises by the batch in training and by
statistics of other data afterwards is two functions. Parakeet, the wav2vec2-conformers, PatchTST and InceptionTime have
such layers.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def hold_statistics(model: nn.Module) -> list[str]:
    """Keep every frozen BatchNorm of ``model`` in evaluation, whatever ``model.train()`` says; its modules' names.

    A layer whose scale or shift is trained is left alone, also where that becomes so later: full fine-tuning of the
    same model is as ever. One without scale and shift is never held, as nothing says whether it is frozen.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.BatchNorm1d(2)).requires_grad_(False)
        >>> hold_statistics(net)
        ['1']
        >>> _ = net.train()(torch.randn(4, 1, 10))
        >>> net[1].running_mean
        tensor([0., 0.])
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats and _is_frozen(module):
            names.append(name)
            if _stay_in_evaluation not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_stay_in_evaluation)
    return names


def _stay_in_evaluation(module: nn.Module, args: Any) -> None:
    if module.training and _is_frozen(module):
        module.training = False


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
