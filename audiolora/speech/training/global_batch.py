"""The loss of an update as the mean over all that it was made from, whatever the processes and accumulated steps.

A model's loss is a mean over its own batch: over tokens for Whisper, over clips for CTC. Batches of different sizes
must not count alike, so with n_b items in batch b of an update, over all processes and accumulated steps,

    loss = Σ_b n_b · loss_b / Σ_b n_b.

Then one process with batches of N, two with N/2, and one with N/2 and two accumulated steps take the same steps.
(PyTorch averages over processes; transformers has this weighting for language models, not for Whisper nor CTC.)

accelerate repeats clips so that every process has a whole last batch; the repeated ones are left out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_WEIGHT = "audiolora_weight"
"""In a training batch: n_b / Σ n_b, times what transformers and PyTorch will divide the loss by."""


class GlobalBatchLoss:
    """For a Trainer: a base before it; `items` says what the model's loss is a mean over.

    The development loss is the same mean over the whole development part, however it was cut into batches.
    """

    accelerator: Any
    args: Any
    train_dataset: Any
    # transformers is to divide by the accumulated steps, for which the weights make up, on every version alike.
    model_accepts_loss_kwargs = False

    def items(self, inputs: dict[str, Any]) -> torch.Tensor:
        """How many items the model's loss is a mean over, in a batch: a scalar tensor on its device."""
        raise NotImplementedError

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)[0]  # type: ignore[misc]
        counts = [self.items(batch) for batch in batches]
        if batches and self.accelerator.gradient_state.end_of_dataloader:
            batches[-1], counts[-1] = self._unrepeated(batches[-1], self._in_last_batch())
        if not batches:
            return batches, None
        own = torch.stack(counts).to(device, torch.float32)
        share = own / self.accelerator.reduce(own.sum(), "sum")
        weights = share * (self.accelerator.num_processes * len(batches))
        return [{**batch, _WEIGHT: weight} for batch, weight in zip(batches, weights, strict=True)], None

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        inputs = dict(inputs)
        weight = inputs.pop(_WEIGHT, 1.0)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)  # type: ignore[misc]
        return (weight * loss, outputs) if return_outputs else weight * loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, **kwargs: Any
    ) -> Any:
        clips = self._clips - (self._batch * self.accelerator.num_processes + self._process) * self.args.eval_batch_size
        self._batch += 1
        inputs, count = self._unrepeated(inputs, clips)
        loss, *others = super().prediction_step(model, inputs, prediction_loss_only, **kwargs)  # type: ignore[misc]
        if count > 0:
            self._sum += float(loss) * float(count)
            self._items += float(count)
        return loss, *others

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._clips, self._batch, self._sum, self._items = len(dataloader.dataset), 0, 0.0, 0.0
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        total = torch.tensor([self._sum, self._items], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        output.metrics[f"{metric_key_prefix}_loss"] = (total[0] / total[1]).item()
        return output

    @property
    def _process(self) -> int:
        return self.accelerator.process_index

    def _in_last_batch(self) -> int:
        """How many of this process's clips in the last batch of an epoch are the epoch's own."""
        size = self.args.train_batch_size
        left = len(self.train_dataset) % (size * self.accelerator.num_processes)
        return left - self._process * size if left else size

    def _unrepeated(self, batch: dict[str, Any], clips: int) -> tuple[dict[str, Any], torch.Tensor]:
        """The first `clips` of a batch and their items; where there are none, one clip that counts for nothing."""
        if clips < len(batch["labels"]):
            batch = {name: value[: max(clips, 1)] for name, value in batch.items()}
        count = self.items(batch)
        return batch, count if clips > 0 else torch.zeros_like(count)
