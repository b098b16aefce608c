"""What LoRA and AdaLoRA share: a weight that is the base's plus low-rank terms, factored where it is being trained."""

import torch
from torch import nn

from audiolora.conv.factors import LowRank, adapted_weight, combined
from audiolora.conv.packed import Weight, unpacked
from audiolora.conv.weight import FactoredWeight
from audiolora.layers.base import WeightSpaceLayer


class LowRankLayer(WeightSpaceLayer):
    """A layer whose adapters are low-rank terms, each with a magnitude (DoRA's) or none.

    ``lora_dropout`` holds a dropout an adapter, as in PEFT.
    """

    takes_packed = True
    lora_dropout: nn.ModuleDict

    def term(self, adapter_name: str) -> LowRank:
        """The adapter's low-rank term."""
        raise NotImplementedError

    def magnitude_of(self, adapter: str) -> torch.Tensor | None:
        """DoRA's m (C_out elements), None for an adapter without it."""
        return None

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """W' - W (C_out, C_in/g, k) of this adapter alone; PEFT's name."""
        W = self.base_tensor("weight")
        return adapted_weight(W, self.term(adapter), self.magnitude_of(adapter)) - W

    def adapt_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W' with these adapters, one map after the other; factored where it is being trained."""
        if len(adapters) > 1 and any(self._dropout_p(name) for name in adapters):
            name = next(name for name in adapters if self._dropout_p(name))
            raise ValueError(
                f"lora_dropout={self._dropout_p(name)} on adapter {name!r} needs it to be the only active one; "
                f"active now: {adapters}"
            )
        # Several LoRA terms add up to one; of DoRA's maps the second takes the first's result.
        one_map = len(adapters) == 1 or not any(self.magnitude_of(name) is not None for name in adapters)
        if one_map and self._worth_factoring(weight, adapters):
            term = combined([self.term(name) for name in adapters])
            return FactoredWeight.make(weight, term, self.magnitude_of(adapters[0]), self._dropout_p(adapters[0]))
        return self.merged_weight(weight, adapters)

    def merged_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W' as a plain tensor and without dropout: what a merge writes into the base in training too."""
        for name in adapters:
            weight = adapted_weight(weight, self.term(name), self.magnitude_of(name))
        return unpacked(weight)

    def _worth_factoring(self, weight: Weight, adapters: list[str]) -> bool:
        """Under a gradient for the factors with the base frozen; export, tracing and torch.func want plain operators.

        Also where there is no sum to form: dropout acts on the input, and factors on ``meta`` have yet to be loaded,
        while PEFT reads the weight's device.

        Raises:
            ValueError: dropout under torch.export or torch.jit.trace.
        """
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            if self._dropout_p(adapters[0]):
                raise ValueError(
                    f"lora_dropout={self._dropout_p(adapters[0])} on adapter {adapters[0]!r} has no form for "
                    "torch.export or torch.jit.trace in training mode; call eval() first"
                )
            return False
        factors = [factor for name in adapters for factor in self.factors_of(name)]
        if self._dropout_p(adapters[0]) or any(factor.is_meta != weight.is_meta for factor in factors):
            return True
        trained = torch.is_grad_enabled() and any(factor.requires_grad for factor in factors)
        return trained and not weight.requires_grad and not _in_function_transform()

    def _dropout_p(self, name: str) -> float:
        dropout = self.lora_dropout[name]
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _in_function_transform() -> bool:
    """Inside ``torch.func``'s grad, vmap and so on, which the fused operator has no rules for."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
