"""Many adapters in one batch: y_n = c_n · (W ∗ x_n + B_n·(A_n ∗ x_n)) + bias + b_n, each sample n with its own.

One convolution with the shared W, then two batched products with r rows for all samples at once. Where r is not small
against the channels (`conv.plan`), a kernel for each sample is formed instead, and one convolution runs with a group
for each. The alternative, one pass for each adapter, runs as many convolutions as there are adapters, each on a sliver
of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from audiolora.conv.factors import LowRank, as_kernel, inverse_norms, stored
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.lowrank import lowrank_add
from audiolora.conv.native import convolve
from audiolora.conv.plan import Path, gradient_path
from audiolora.conv.weight import AdaptedWeight


class PerSampleWeightError(ValueError):
    """A batched weight was put to a use that has no batch, or another batch, to go with it."""


@dataclass(frozen=True)
class Adapter:
    """What one adapter does to a convolution: its term, DoRA's m (C_out elements) and a bias (C_out,), or None."""

    term: LowRank
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None


class BatchedWeight(AdaptedWeight):
    """An adapted weight for each sample, over one base."""

    base: torch.Tensor
    adapters: Sequence[Adapter | None]
    which: Sequence[int]

    @staticmethod
    def make(base: torch.Tensor, adapters: Sequence[Adapter | None], which: Sequence[int]) -> "BatchedWeight":
        """Wrap a weight for a batch.

        Args:
            base: W, stored as its convolution stores it.
            adapters: those in the batch, at least one of them not None; None is the base alone.
            which: sample → index into ``adapters``.
        """
        weight = base.detach().as_subclass(BatchedWeight)
        weight.base, weight.adapters, weight.which = base, adapters, which
        weight.transposed_groups = next(each for each in adapters if each is not None).term.transposed_groups
        return weight

    def dense(self) -> torch.Tensor:
        raise PerSampleWeightError(
            "a weight for each sample is not one tensor, and here it is read or transformed before it convolves; run "
            "each adapter's samples by themselves, after set_adapter()"
        )

    def convolve(self, x: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry) -> torch.Tensor:
        """See the module's text.

        Raises:
            PerSampleWeightError: the convolution's batch is not the one that the adapters were named for.
        """
        if x.shape[0] != len(self.which):
            raise PerSampleWeightError(f"{len(self.which)} samples have an adapter each, the batch is {x.shape[0]}")
        A, B = self._factors()
        c = self._scale(A, B)
        if gradient_path(self.base.shape, A.shape[1], geometry) is Path.DENSE:
            y = self._convolve_each(x, A, B, c, geometry)
            y = y if bias is None else y + bias[:, None]
        else:
            y = convolve(x, self.base.to(x.dtype), bias if c is None else None, geometry)
            y = lowrank_add(y, x, A, B, c, None if c is None else bias, geometry)
        if not any(each is not None and each.bias is not None for each in self.adapters):
            return y
        extra = [None if each is None else each.bias for each in self.adapters]
        zero = y.new_zeros(y.shape[1])
        return y + self._spread(torch.stack([zero if b is None else b.to(y.dtype) for b in extra]))[:, :, None]

    def _convolve_each(
        self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, c: torch.Tensor | None, geometry: ConvGeometry
    ) -> torch.Tensor:
        """The batch as one sample of N times the channels, with N times the groups."""
        n, kernel = x.shape[0], as_kernel(self.base, self.transposed_groups)
        V = kernel + (B @ A.flatten(2)).view(n, *kernel.shape).to(kernel.dtype)
        V = V if c is None else V * c.to(V.dtype)[:, :, None, None]
        weights = stored(V.flatten(0, 1), None if self.transposed_groups is None else n * self.transposed_groups)
        each = replace(geometry, groups=n * geometry.groups)
        y = convolve(x.reshape(1, n * x.shape[1], x.shape[2]), weights.to(x.dtype), None, each)
        return y.view(n, kernel.shape[0], y.shape[2])

    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (N, r, C_in/g, k) and s·B (N, C_out, r); smaller ranks are filled up with zeros."""
        terms = [None if each is None else each.term for each in self.adapters]
        sample = next(term for term in terms if term is not None)
        r = max(term.B.shape[1] for term in terms if term is not None)
        As, Bs = [], []
        for term in terms:
            if term is None:
                As.append(sample.A.new_zeros(r, *sample.A.shape[1:]))
                Bs.append(sample.B.new_zeros(sample.B.shape[0], r))
                continue
            missing = r - term.B.shape[1]
            As.append(F.pad(term.A, (0, 0, 0, 0, 0, missing)) if missing else term.A)
            Bs.append((F.pad(term.B, (0, missing)) if missing else term.B) * term.scaling)
        return self._spread(torch.stack(As)), self._spread(torch.stack(Bs))

    def _scale(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor | None:
        """c (N, C_out), 1 where an adapter has no magnitude; None if none has."""
        magnitudes = [None if each is None else each.magnitude for each in self.adapters]
        some = next((m for m in magnitudes if m is not None), None)
        if some is None:
            return None
        inverse = inverse_norms(self.base, A, B, self.transposed_groups)
        ones = inverse.new_ones(inverse.shape[1])
        m = self._spread(torch.stack([ones if m is None else m.flatten() for m in magnitudes]))
        has = self._spread(torch.tensor([m is not None for m in magnitudes], device=inverse.device))
        return m * torch.where(has[:, None], inverse, ones)

    def _spread(self, per_adapter: torch.Tensor) -> torch.Tensor:
        """From one row for each adapter to one for each sample."""
        if list(self.which) == list(range(per_adapter.shape[0])):
            return per_adapter
        return per_adapter[torch.tensor(self.which, device=per_adapter.device)]
