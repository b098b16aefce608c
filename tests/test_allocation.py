"""AdaLoRA's budget: against the paper's formulas written out here, and against PEFT's own on linear layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import AdaLoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

import audiolora
from audiolora.allocation import adalora_layers
from audiolora.layers.adalora import AdaLoraConv1d

STEPS, TINIT, TFINAL, DELTA_T, B1, B2 = 20, 3, 5, 2, 0.8, 0.7
TARGETS = ["grouped", "up", "head"]


class Mixed(nn.Module):
    """A grouped and a transposed convolution and a linear layer, which share one budget."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.up = nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose1d(6, 5, 4, stride=2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.up(torch.tanh(self.grouped(x)))).mean(2))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def config(targets: list[str], **settings: Any) -> AdaLoraConfig:
    schedule = {"total_step": STEPS, "tinit": TINIT, "tfinal": TFINAL, "deltaT": DELTA_T, "beta1": B1, "beta2": B2}
    return AdaLoraConfig(target_modules=targets, **{"init_r": 4, "target_r": 2, **schedule, **settings})


def adapted(kind: type[nn.Module] = Mixed, targets: list[str] = TARGETS, ours: bool = True, **settings: Any) -> Any:
    torch.manual_seed(0)
    net = kind().double()
    if not ours:
        audiolora.disable()
        return get_peft_model(net, config(targets, **settings))
    with audiolora.enabled():
        return get_peft_model(net, config(targets, **settings))


def steps(model: PeftModel, x: torch.Tensor, y: torch.Tensor, n: int = STEPS, first: int = 1) -> Iterator[int]:
    """Training steps, each left at the moment that is the allocation's."""
    optimiser = torch.optim.AdamW(model.parameters(), 3e-2)
    for step in range(first, first + n):
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        yield step
        optimiser.zero_grad()


def data(channels: int = 4, length: int | None = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (16, channels) if length is None else (16, channels, length)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (16,), generator=generator)


class Paper:
    """Sections 3.2 and 3.3 of arXiv 2303.10512, one triplet after the other."""

    def __init__(self, model: PeftModel) -> None:
        self.layers = dict(adalora_layers(model.base_model.model, "default"))
        self.averages: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def smooth(self) -> None:
        for path, layer in self.layers.items():
            for kind in ("lora_A", "lora_E", "lora_B"):
                w = getattr(layer, kind)["default"]
                importance = (w.detach() * w.grad).abs()  # (8)
                mean, deviation = self.averages.get((path, kind), (torch.zeros_like(w), torch.zeros_like(w)))
                mean = B1 * mean + (1 - B1) * importance  # (9)
                deviation = B2 * deviation + (1 - B2) * (importance - mean).abs()  # (10)
                self.averages[path, kind] = mean, deviation

    def score(self, path: str, i: int) -> float:
        """S of triplet i: (7) with s = Ī·Ū (11)."""
        Q, values, P = (torch.mul(*self.averages[path, kind]) for kind in ("lora_A", "lora_E", "lora_B"))
        return (values[i].squeeze() + Q[i].mean() + P[:, i].mean()).item()

    def budget(self, t: int) -> int:
        start, target = 4 * len(self.layers), 2 * len(self.layers)
        if t <= TINIT:
            return start
        if t > STEPS - TFINAL:
            return target
        return int(target + (start - target) * (1 - (t - TINIT) / (STEPS - TFINAL - TINIT)) ** 3)  # (12)

    def kept(self, t: int) -> dict[str, list[bool]]:
        scores = {(path, i): self.score(path, i) for path in self.layers for i in range(4)}
        best = sorted(scores, key=lambda triplet: scores[triplet], reverse=True)[: self.budget(t)]
        return {f"{path}.lora_E.default": [(path, i) in best for i in range(4)] for path in self.layers}


def test_conv_and_linear_share_the_paper_s_budget() -> None:
    model, (x, y) = adapted(), data()
    paper = Paper(model)
    assert [isinstance(layer, AdaLoraConv1d) for layer in paper.layers.values()] == [True, True, False]
    patterns = []
    for t in steps(model, x, y):
        last = STEPS - TFINAL
        if t < last:
            paper.smooth()
        model.base_model.update_and_allocate(t)
        if (TINIT < t < last and t % DELTA_T == 0) or t == last:
            patterns.append(paper.kept(t))
            assert model.base_model.rank_pattern == patterns[-1], t
        for name, kept in (patterns[-1] if patterns else {}).items():
            E = paper.layers[name.removesuffix(".lora_E.default")].lora_E["default"]
            if t >= last or t % DELTA_T == 0:
                assert not E[~torch.tensor(kept)].any() and E[torch.tensor(kept)].all()
    sizes = [sum(map(sum, pattern.values())) for pattern in patterns]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < 12 and sizes[-1] == 6
    ranks = {row.name: (row.r, row.method) for row in audiolora.inspect(model).rows}
    assert ranks == {
        path: (sum(patterns[-1][f"{path}.lora_E.default"]), "AdaLoRA" + (" (PEFT)" if path == "head" else ""))
        for path in TARGETS
    }


def test_on_linear_layers_it_is_peft_s_own() -> None:
    targets = ["first", "second", "head"]
    x, y = data(6, None)
    ours, theirs = adapted(Dense, targets), adapted(Dense, targets, ours=False)
    theirs.load_state_dict(ours.state_dict())
    theirs.base_model.model.requires_grad_(False)
    for model in (ours, theirs):
        for name, p in model.named_parameters():
            p.requires_grad = "lora_" in name  # PEFT trains ranknum in float64
    for t, _ in zip(steps(ours, x, y), steps(theirs, x, y), strict=True):
        ours.base_model.update_and_allocate(t)
        theirs.base_model.update_and_allocate(t)
        assert ours.peft_config["default"].rank_pattern == theirs.peft_config["default"].rank_pattern
    assert sum(map(sum, ours.peft_config["default"].rank_pattern.values())) == 6
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


def test_a_budget_that_takes_nothing_away() -> None:
    model, (x, y) = adapted(init_r=2), data()
    for t in steps(model, x, y):
        model.base_model.update_and_allocate(t)
    assert set(map(sum, model.base_model.rank_pattern.values())) == {2}


def test_a_module_that_sat_out_keeps_its_averages() -> None:
    model, (x, y) = adapted(), data()
    layer = model.base_model.model.head
    for t in steps(model, x, y, 4):
        allocator = model.base_model.rankallocator
        if t == 2:
            before = {name: tensor.clone() for name, tensor in allocator.exp_avg_ipt.items()}
            for holder in (layer.lora_A, layer.lora_E, layer.lora_B):
                holder["default"].grad = None
        model.base_model.update_and_allocate(t)
        if t == 2:
            same = {name for name, tensor in allocator.exp_avg_ipt.items() if torch.equal(tensor, before[name])}
            assert same == {f"head.lora_{kind}.default" for kind in "AEB"}


def test_a_step_with_infinite_gradients_leaves_the_averages_alone() -> None:
    model, (x, y) = adapted(), data()
    allocator = model.base_model.rankallocator
    for t in steps(model, x, y, 3):
        before = copy.deepcopy(allocator.exp_avg_ipt)
        if t == 2:
            model.base_model.model.up.lora_A["default"].grad[0, 0] = torch.inf
        model.base_model.update_and_allocate(t)
        unchanged = all(torch.equal(tensor, allocator.exp_avg_ipt[name]) for name, tensor in before.items())
        assert unchanged == (t < 3)  # before the first there are none


def test_the_rank_it_is_divided_by_is_no_parameter() -> None:
    model, (x, y) = adapted(), data()
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    for t in steps(model, x, y, 3):
        model.base_model.update_and_allocate(t)
    assert {layer.ranknum["default"].item() for _, layer in adalora_layers(model, "default")} == {4.0}


def test_training_without_allocation_stops_at_the_second_step() -> None:
    model, (x, y) = adapted(), data()
    with pytest.raises(ValueError, match=r"without allocating.*callbacks=\[audiolora.AdaLoraCallback\(\)\]"):
        for _ in steps(model, x, y):
            pass


def test_accumulated_gradients_and_looks_at_them_are_no_steps() -> None:
    model, (x, y) = adapted(), data()
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
    model.zero_grad()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for t in (1, 2):
        for part in (slice(0, 8), slice(8, 16)):
            F.cross_entropy(model(x[part]), y[part]).backward()
        model.base_model.update_and_allocate(t)  # before the step: PEFT's texts have both
        optimiser.step()
        optimiser.zero_grad()


def test_an_adapter_s_name_may_be_part_of_a_module_s(tmp_path: Any) -> None:
    torch.manual_seed(0)
    with audiolora.enabled():
        model = get_peft_model(Mixed().double(), config(TARGETS), adapter_name="up")
    x, y = data()
    for t in steps(model, x, y):
        model.base_model.update_and_allocate(t)
    expected = model.eval()(x)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(Mixed().double(), tmp_path / "up", adapter_name="head").double().eval()
    torch.testing.assert_close(loaded(x), expected)
    kept = {path: sum(model.base_model.rank_pattern[f"{path}.lora_E.up"]) for path in TARGETS}
    assert {row.name: row.r for row in audiolora.inspect(loaded).rows} == kept


def test_an_adapter_with_its_final_ranks_trains_on_as_it_is(tmp_path: Any) -> None:
    model, (x, y) = adapted(), data()
    for t in steps(model, x, y):
        model.base_model.update_and_allocate(t)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(Mixed().double(), tmp_path, is_trainable=True)
    ranks = [row.r for row in audiolora.inspect(loaded).rows]
    for t in steps(loaded, x, y, 3):
        if t > 1:
            loaded.base_model.update_and_allocate(t)
    assert [row.r for row in audiolora.inspect(loaded).rows] == ranks and sum(ranks) == 6


class Classifier(PreTrainedModel):
    """Returns a loss, as transformers' models do."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.net = Mixed().double()

    def forward(self, x: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> SequenceClassifierOutput:
        logits = self.net(x)
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def classifier(task_type: Any) -> PeftModel:
    torch.manual_seed(0)
    with audiolora.enabled():
        return get_peft_model(Classifier(), config(TARGETS, task_type=task_type, orth_reg_weight=0.3))


@pytest.mark.parametrize("task_type", [None, TaskType.FEATURE_EXTRACTION])
def test_the_penalty_is_in_the_loss_of_a_training_network(task_type: Any) -> None:
    model, (x, y) = classifier(task_type), data()
    model.train()
    output = model(x=x, labels=y)
    norms = []
    for _, layer in adalora_layers(model, "default"):
        Q, P = layer.lora_A["default"], layer.lora_B["default"]
        norms += [(M - torch.eye(4, dtype=M.dtype)).square().sum().sqrt() for M in (Q @ Q.T, P.T @ P)]
    penalty = 0.3 * sum(norms) / len(norms)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, y) + penalty)
    torch.testing.assert_close(audiolora.orthogonality_penalty(model), penalty)
    expected = torch.autograd.grad(penalty, [p for n, p in model.named_parameters() if "lora_A" in n])
    output.loss.backward()
    assert expected[0].any()
    for gradient, (_, layer) in zip(expected, adalora_layers(model, "default"), strict=True):
        torch.testing.assert_close(layer.lora_A["default"].grad, gradient)  # λ is zero: nothing else comes through
    evaluated = model.eval()(x=x, labels=y)
    torch.testing.assert_close(evaluated.loss, F.cross_entropy(evaluated.logits, y))


def test_a_loss_for_inference_has_none(tmp_path: Any) -> None:
    model, (x, y) = classifier(TaskType.FEATURE_EXTRACTION), data()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(Classifier(), tmp_path)
    output = loaded.train()(x=x, labels=y)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, y))
    with pytest.raises(ValueError, match="no AdaLoRA adapter that is trained"):
        audiolora.orthogonality_penalty(loaded)


@pytest.mark.slow
def test_it_trains_compiled_and_an_allocation_forgotten_is_seen_there_too() -> None:
    model, (x, y) = adapted(), data()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    twin = adapted()
    for t, _ in zip(steps(compiled, x, y, 5), steps(twin, x, y, 5), strict=True):
        model.base_model.update_and_allocate(t)
        twin.base_model.update_and_allocate(t)
    torch.testing.assert_close(model(x), twin(x))
    with pytest.raises(ValueError, match="without allocating"):
        for _ in steps(torch.compile(adapted(), fullgraph=True, backend="aot_eager"), x, y, 3):
            pass
