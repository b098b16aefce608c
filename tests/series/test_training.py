"""The loop: against torch.optim by hand, early stopping, exact resume, the pull toward the start."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import audiolora
from audiolora.allocation import kept_ranks
from audiolora.checkpoints import last_whole_checkpoint
from audiolora.series import training
from audiolora.series.losses import forecast_loss
from audiolora.series.training import FitSettings, Pairs, fingerprint, fit_net, trained_tensors
from tests.series.tiny_fleet import HORIZON, adapted, tiny_net

MAE = forecast_loss("mae")
SETTINGS = FitSettings(epochs=4, lr=3e-3, batch_size=16, patience=0)


def pairs(count: int = 40, seed: int = 0) -> Pairs:
    """A target that the window tells: its last steps, mirrored."""
    x = torch.randn(count, 1, 48, generator=torch.Generator().manual_seed(seed))
    return Pairs(x, -x[:, 0, -HORIZON:])


def fit(net: nn.Module, settings: FitSettings = SETTINGS, out: Path | None = None) -> pd.DataFrame:
    return fit_net(net, MAE, pairs(), pairs(20, seed=1), settings, out=out, quiet=True)


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained_tensors(net).items()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("toward_base", [0.0, 0.5])
def test_an_epoch_is_that_of_torch_s_adamw(toward_base):
    """All windows in one batch: no order to follow; the pull written as a loss of its own in float64 arithmetic."""
    net, data = tiny_net(), pairs(16)
    by_hand = copy.deepcopy(net)
    start = [p.detach().clone() for p in by_hand.parameters()]
    settings = FitSettings(epochs=3, lr=1e-2, batch_size=16, toward_base=toward_base, patience=0)
    history = fit_net(net, MAE, data, None, settings, out=None, quiet=True)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 0.5 * (1 + torch.cos(torch.tensor(t / 3 * torch.pi)))
    )
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = MAE(by_hand(data.x), data.y)
        if toward_base:
            pulls = [(p - s).square().sum() for p, s in zip(by_hand.parameters(), start, strict=True)]
            loss = loss + toward_base / 2 * torch.stack(pulls).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-3)
    for ours, theirs in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_strong_pull_keeps_the_weights_where_they_started():
    ends = {}
    for pull in (0.0, 1e3):
        net = adapted(tiny_net())
        start = tensors(net)
        fit(net, FitSettings(epochs=3, lr=1e-3, batch_size=16, toward_base=pull, patience=0))
        ends[pull] = sum((tensor - start[name]).square().sum().item() for name, tensor in tensors(net).items())
    assert ends[1e3] < 0.1 * ends[0.0]


@pytest.mark.parametrize("kind", [pytest.param("whole", marks=pytest.mark.slow), "adapters"])
def test_an_interrupted_training_goes_on_to_the_same_weights(kind, tmp_path, monkeypatch):
    def made(seed: int) -> nn.Module:
        net = tiny_net(dropout=0.2)
        return net if kind == "whole" else adapted(net, seed=seed)

    reference = made(0)
    history = fit(reference, out=tmp_path / "reference")
    step, calls = training._FitTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == 8:  # in the third epoch of three steps
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(training._FitTrainer, "training_step", interrupted)
    net = made(0)
    with pytest.raises(KeyboardInterrupt):
        fit(net, out=tmp_path / "run")
    monkeypatch.undo()
    assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-6"
    for again in (net, made(1) if kind == "adapters" else copy.deepcopy(net)):  # as it was left, and another start
        pd.testing.assert_frame_equal(fit(again, out=tmp_path / "run"), history)
        assert_equal(tensors(again), tensors(reference))


def train_and_die(folder: Path, at_step: int) -> None:
    step, calls = training._FitTrainer.training_step, []

    def dying(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    training._FitTrainer.training_step = dying
    torch.set_num_threads(1)
    fit(tiny_net(dropout=0.2), out=folder)


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [1, 5, 12])
def test_a_killed_training_goes_on_to_the_same_weights(at_step, tmp_path):
    reference, net = tiny_net(dropout=0.2), tiny_net(dropout=0.2)
    fit(reference)
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(tmp_path, at_step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    fit(net, out=tmp_path)
    assert_equal(tensors(net), tensors(reference))


def test_it_stops_when_patience_ends_and_keeps_the_best_epoch(tmp_path):
    """Targets of the validation that are the opposite of those trained on: the first epoch is the best."""
    held = pairs(20, seed=1)
    opposite = Pairs(held.x, -held.y)
    settings = FitSettings(epochs=9, lr=1e-2, batch_size=16, patience=2)
    net = tiny_net()
    history = fit_net(net, MAE, pairs(), opposite, settings, out=tmp_path, quiet=True)
    best = history["val_loss"].idxmin()
    assert len(history) == best + 3 < 9 and history["best"].tolist().index(True) == best
    with torch.no_grad():
        assert MAE(net(opposite.x), opposite.y).item() == pytest.approx(history["val_loss"][best], rel=1e-5)
    assert not net.training


def test_the_same_seed_gives_the_same_weights():
    ends = [tiny_net() for _ in range(3)]
    for net, seed in zip(ends, (5, 5, 6), strict=True):
        fit(net, FitSettings(epochs=1, batch_size=16, seed=seed))
    assert_equal(tensors(ends[0]), tensors(ends[1]))
    assert not torch.equal(ends[0].head.weight, ends[2].head.weight)


def test_another_training_in_the_folder_is_refused(tmp_path):
    fit(tiny_net(), FitSettings(epochs=1, batch_size=16), out=tmp_path)
    with pytest.raises(ValueError, match=r"holds another training: lr=0.001 there, 0.01 now.*Take another folder"):
        fit(tiny_net(), FitSettings(epochs=1, batch_size=16, lr=0.01), out=tmp_path)
    with pytest.raises(ValueError, match="other windows"):
        fit_net(tiny_net(), MAE, pairs(30), None, FitSettings(epochs=1, batch_size=16), out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="other trained; other frozen weights"):
        fit(adapted(tiny_net()), FitSettings(epochs=1, batch_size=16), out=tmp_path)


def test_a_frozen_batch_norm_learns_no_statistics():
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * 46, HORIZON))

    frozen, whole = net(), net()
    frozen[:2].requires_grad_(False)
    for each in (frozen, whole):
        fit(each, FitSettings(epochs=1, batch_size=16))
    assert torch.equal(frozen[1].running_mean, torch.zeros(4))
    assert not torch.equal(whole[1].running_mean, torch.zeros(4))


def test_nothing_to_train_and_no_finite_loss_are_errors():
    with pytest.raises(ValueError, match=r"nothing in the network requires a gradient; adapt it"):
        fit(tiny_net().requires_grad_(False))
    with pytest.raises(ValueError, match=r"no loss was finite, at lr=1e\+38"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.Linear(9, HORIZON)), FitSettings(lr=1e38, batch_size=16))


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("lr", 0.0), ("lr", float("nan")), ("batch_size", 2.5), ("toward_base", -1.0), ("patience", -1)],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        FitSettings(**{name: value})


def test_a_fingerprint_tells_values_shapes_and_types():
    a = {"x": torch.arange(4.0), "y": torch.zeros(2)}
    assert fingerprint(a) == fingerprint({"z": torch.zeros(2), "w": torch.arange(4.0)})
    others = [
        {"x": torch.arange(4.0) + 1e-6, "y": torch.zeros(2)},
        {"x": torch.arange(4.0).view(2, 2), "y": torch.zeros(2)},
        {"x": torch.arange(4.0).double(), "y": torch.zeros(2)},
    ]
    assert fingerprint(a) not in [fingerprint(other) for other in others]


def test_adalora_is_allocated_without_being_asked():
    """12 steps: 4 epochs of 3 batches; five modules of 3 triplets each come down to 10 together at most."""
    net = audiolora.adapt(tiny_net(), "adalora", r=2, schedule=audiolora.RankSchedule(total_step=12))
    fit_net(net, MAE, pairs(), None, SETTINGS, out=None, quiet=True)
    ranks = kept_ranks(net)
    assert len(ranks) == 5 and 5 <= sum(ranks.values()) <= 10  # ties at the threshold go together
    penalised = audiolora.orthogonality_penalty(net)
    assert torch.isfinite(penalised) and penalised.requires_grad
    wrong = audiolora.adapt(tiny_net(), "adalora", r=2, schedule=audiolora.RankSchedule(total_step=99))
    with pytest.raises(ValueError, match="total_step=99, and this training takes 12 optimiser steps"):
        fit_net(wrong, MAE, pairs(), None, SETTINGS, out=None, quiet=True)
