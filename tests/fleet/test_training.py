"""Early stopping, divergence, learning rates, pulls, resuming: what each device does by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn

import audiolora
from audiolora.fleet import batch_order, training
from audiolora.fleet.adamw import AdamW
from tests.fleet.nets import make_data, make_net

IDS = ["a", "b", "c"]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(44, 3))


def make_fleet(ids: list[str] = IDS) -> audiolora.Fleet:
    return audiolora.Fleet(make_net(small), LoraConfig(r=2, target_modules=["0", "3"]), ids)


def fit(fleet: audiolora.Fleet, data: Any, **settings: Any) -> Any:
    return fleet.fit(data, **({"epochs": 4, "batch_size": 4, "lr": 1e-2, "progress": False} | settings))


def test_adamw_is_torch_s_row_by_row() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 7, generator=generator)
    rows = [row.clone().requires_grad_() for row in values]
    optimisers = [torch.optim.AdamW([row], lr=1e-2 * (i + 1), weight_decay=0.1) for i, row in enumerate(rows)]
    first, second, steps = torch.zeros(3, 7), torch.zeros(3, 7), torch.zeros(3, 1, dtype=torch.float64)
    lr = torch.tensor([[1e-2], [2e-2], [3e-2]], dtype=torch.float64)
    for step in range(5):
        here = slice(0, 3) if step else slice(0, 2)  # the third one joins a step later
        gradient = torch.randn(3, 7, generator=generator)
        for row, optimiser, g in list(zip(rows, optimisers, gradient, strict=True))[here]:
            row.grad = g.clone()
            optimiser.step()
        steps[here] += 1
        state = values[here], gradient[here], first[here], second[here], steps[here], lr[here]
        AdamW(weight_decay=0.1).step(*state)
    torch.testing.assert_close(values, torch.stack(rows).detach(), rtol=1e-6, atol=1e-6)


def test_orders_are_of_the_device() -> None:
    order = torch.cat(batch_order(10, 4, id="a"))
    assert sorted(order.tolist()) == list(range(10))
    assert torch.equal(order, torch.cat(batch_order(10, 4, id="a")))
    for other in (batch_order(10, 4, id="b"), batch_order(10, 4, id="a", seed=1), batch_order(10, 4, id="a", epoch=1)):
        assert not torch.equal(order, torch.cat(other))


def test_a_device_stops_early_with_its_best_weights() -> None:
    data, val = make_data(IDS, [8, 8, 8]), make_data(["a", "b"], [6, 5], seed=1)
    fleet = make_fleet()
    passes: list[int] = []
    run, step = fleet._run, fleet._run
    fleet._run = lambda rows, x: (passes.append(len(x)) if torch.is_grad_enabled() else None, step(rows, x))[1]  # type: ignore[method-assign]
    history = fit(fleet, data, val=val, epochs=40, lr=0.1, patience=3)
    fleet._run = run  # type: ignore[method-assign]
    assert history["a"].status == history["b"].status == "stopped early"
    assert history["c"].status == "finished" and history["c"].steps == 80
    assert sum(passes) == 4 * sum(device.steps for device in history.values())  # a stopped device costs nothing
    for id in ("a", "b"):
        device = history[id]
        best = min(loss for _, loss in device.validation)
        assert device.best_loss == best and device.validation[0][0] == 0
        assert device.steps - device.best_step == 3 * 2  # two batches an epoch, three validations
        now = torch.nn.functional.mse_loss(fleet(val[id][0], id), val[id][1]).item()
        assert now == pytest.approx(best, rel=1e-5)
        alone = make_fleet([id])
        lonely = fit(alone, {id: data[id]}, val={id: val[id]}, epochs=40, lr=0.1, patience=3)[id]
        np.testing.assert_allclose(lonely.validation, device.validation, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.values[0], fleet.values[IDS.index(id)], rtol=1e-4, atol=1e-4)


def test_one_that_gains_nothing_keeps_its_start() -> None:
    fleet = make_fleet(["a"])
    before = fleet.values.clone()
    x, y = make_data(["a"], [4])["a"]
    history = fit(fleet, {"a": (x, y)}, val={"a": (x, fleet(x, "a"))}, epochs=5)
    assert torch.equal(fleet.values, before)
    assert history["a"].best_step == 0 and history["a"].best_loss == 0


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_diverging_device_stops_alone(broken: str) -> None:
    data = make_data(IDS, [8, 8, 8])
    settings: dict[str, Any] = {}
    if broken == "loss":
        data["b"][1][3] = torch.nan
    else:  # the root of zero has no derivative
        data["b"][1].zero_()
        settings["loss"] = lambda y, t: (y * t).abs().sqrt().mean()
    fleet, before = make_fleet(), make_fleet().values[1]
    history = fit(fleet, data, batch_size=8, **settings)
    assert history["b"].status == f"diverged: {broken} not finite at step 1"
    assert torch.equal(fleet.values[1], before)
    assert fleet.values.isfinite().all()
    without = fit(make_fleet(["a", "c"]), {id: data[id] for id in ("a", "c")}, batch_size=8, **settings)
    for id in ("a", "c"):
        assert history[id].status == "finished"
        np.testing.assert_allclose(history[id].losses, without[id].losses, rtol=1e-5, atol=1e-6)


def test_pulls() -> None:
    data = make_data(IDS, [8, 8, 8])

    def spread(**settings: Any) -> tuple[float, float]:
        fleet = make_fleet()
        start = fleet.values.clone()
        fit(fleet, data, epochs=30, weight_decay=0.0, **settings)
        return (fleet.values - start).norm().item(), (fleet.values - fleet.values.mean(0)).norm().item()

    free, start, mean = spread(), spread(toward="start", pull=1.0), spread(toward="mean", pull=1.0)
    assert start[0] < 0.5 * free[0]
    assert mean[1] < 0.5 * free[1] and mean[0] > start[0]


def test_a_pull_is_the_gradient_of_its_penalty() -> None:
    data = make_data(["a"], [4])
    fleet = make_fleet(["a"])
    fleet.values += 0.1
    begin = fleet.values.clone()
    model = make_fleet(["a"])
    fit(fleet, data, toward="start", pull=0.3, epochs=3, weight_decay=0.0)
    values, optimiser = begin.clone().requires_grad_(), None
    optimiser = torch.optim.AdamW([values], lr=1e-2, weight_decay=0.0)
    for epoch in range(3):
        (batch,) = batch_order(4, 4, id="a", epoch=epoch)
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(model._run(values, data["a"][0][batch]), data["a"][1][batch])
        (loss + 0.3 * (values - begin).square().sum()).backward()
        optimiser.step()
    torch.testing.assert_close(fleet.values, values.detach(), rtol=1e-5, atol=1e-5)


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, val = make_data(IDS, [9, 6, 9]), make_data(IDS, [4, 4, 4], seed=1)
    whole = make_fleet()
    expected = fit(whole, data, val=val, epochs=6, patience=4, toward="start", pull=0.01)
    step, left = training.Run.step, [5]

    def dying(self: training.Run) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        step(self)

    monkeypatch.setattr(training.Run, "step", dying)
    settings: dict[str, Any] = {"val": val, "epochs": 6, "patience": 4, "toward": "start", "pull": 0.01}
    with pytest.raises(Killed):
        fit(make_fleet(), data, **settings, out=tmp_path / "run", save_every_s=0.0)
    monkeypatch.setattr(training.Run, "step", step)
    again = make_fleet()
    with pytest.raises(ValueError, match=r"another training \(lr: 0.01 there, 0.1 here\)"):
        fit(again, data, **settings, out=tmp_path / "run", lr=0.1)
    history = fit(again, data, **settings, out=tmp_path / "run")
    assert torch.equal(again.values, whole.values)
    for id in IDS:
        assert history[id] == expected[id]
    assert fit(make_fleet(), data, **settings, out=tmp_path / "run")["b"] == expected["b"]  # nothing left to do


def test_the_table_says_how_each_went() -> None:
    data = make_data(IDS, [8, 8, 8])
    data["b"][0][0] = torch.inf
    history = fit(make_fleet(), data, val=make_data(["a"], [2]))
    text = str(history)
    assert "diverged: loss not finite" in text and "finished" in text and "best validation" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"steps": 3}, "give epochs or steps"),
        ({"loss": "rmse"}, "loss must be one of"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"toward": "mean"}, "with a positive pull"),
        ({"lr_scale": {"z": 1.0}}, "lr_scale: z"),
        ({"lr_scale": {"a": -1.0}}, "must not be negative"),
        ({"val": {"z": ()}}, "val: z"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make_fleet(), make_data(IDS, [4, 4, 4]), **settings)


def test_wrong_data() -> None:
    data = make_data(IDS, [4, 4, 4])
    with pytest.raises(ValueError, match="b: 4 inputs and 3 targets"):
        fit(make_fleet(), {**data, "b": (data["b"][0], data["b"][1][:3])})
    with pytest.raises(ValueError, match=r"c: x \(2, 20\)"):
        fit(make_fleet(), {**data, "c": (data["c"][0][..., :20], data["c"][1])})
    with pytest.raises(ValueError, match="data: z"):
        fit(make_fleet(), {**data, "z": data["a"]})
    with pytest.raises(ValueError, match=r"outputs \(12, 3\) and targets \(12, 1\)"):
        fit(make_fleet(), {id: (x, y[:, :1]) for id, (x, y) in data.items()})
    with pytest.raises(TypeError, match="batchsize"):
        fit(make_fleet(), data, batchsize=3)
