"""Trainings in several processes on this machine, as `accelerate launch` would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from audiolora.speech.training import trainer
from tests.speech.tiny_training import Job, train


def run_together(
    processes: int, job: Job, target: Callable[..., None], *, meanwhile: Callable[[list], None] | None = None
) -> list[int]:
    """The job in as many processes, forked from one that has imported all; returns their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.speech.together"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=target, args=(index, processes, port, job)) for index in range(processes)]
    for process in started:
        process.start()
    if meanwhile is not None:
        meanwhile(started)
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def train_as(process: int, processes: int, port: int, job: Job) -> None:
    """`train`, as one of several processes on this machine, as `accelerate launch --cpu` would start it."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    _join(process, processes, port)
    train(job)


def _join(process: int, processes: int, port: int) -> None:
    own = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


def train_sharded(process: int, processes: int, port: int, job: Job, *, version: int = 2) -> None:
    """`train`, as one of several processes over which PyTorch's FSDP shards the model.

    PyTorch shards on CPUs too, but accelerate over GPUs alone: it is told that these are GPUs.
    """
    fsdp = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": str(version),
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    os.environ.update(fsdp)
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    trainer.parse_flag_from_env = lambda name: False
    torch.accelerator.is_available = lambda: True  # type: ignore[assignment]
    _join(process, processes, port)
    train(job)
