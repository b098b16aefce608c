"""ExecuTorch (XNNPACK) against ONNX Runtime on one network: base, with an adapter, merged; loading; files.

    make test-executorch && .venv-executorch/bin/python benchmarks/edge_executorch.py

One thread each. All ways take turns in one process, in a new random order each round; a ratio is taken within its round
and the table shows the median over rounds. Weights are random. Rows are appended to
benchmarks/results/edge_executorch.csv.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import edge
import numpy as np
from cyclopts import run

RESULTS = Path(__file__).parent / "results" / "edge_executorch.csv"
CHANNELS, LENGTHS, RANK, VARIABLES, HORIZON = (64, 256), (64, 256, 1024), 8, 7, 24


def main(*, only: str = "", rounds: int = 15) -> None:
    """Measure, print and append.

    Args:
        only: shapes whose name contains this, such as tcn64.T256.
        rounds: of timing; each way is run in each.
    """
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)  # before any program is loaded
    rows: list[edge.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for channels in CHANNELS:
            for length in LENGTHS:
                shape = f"tcn{channels}.T{length}"
                if only in shape:
                    rows += measured(bundles(Path(folder) / shape, channels, length), shape, length, rounds)
    edge.show(rows)
    edge.save(rows, RESULTS, ("executorch", "onnxruntime"))


def bundles(folder: Path, channels: int, length: int) -> dict[str, Path]:
    """The same network and two adapters for each runtime; merged holds one."""
    import torch
    from peft import LoraConfig, get_peft_model

    import audiolora
    from audiolora.export import export
    from audiolora.series.nets import TCNForecaster

    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = TCNForecaster(VARIABLES, HORIZON, channels=channels, dilations=(1, 2, 4, 8, 16, 32))
    config = LoraConfig(r=RANK, target_modules=["conv1", "conv2"], init_lora_weights=False)
    with audiolora.enabled():
        model = get_peft_model(net, config, adapter_name="user0")
        model.add_adapter("user1", config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    x, made = torch.randn(2, VARIABLES, length), {}
    for target, form in (("onnx", "wsum"), ("onnx", "fact"), ("executorch", "fact"), ("executorch", "merged")):
        made[f"{target} {form}"] = folder / f"{target}-{form}"
        one = {"adapters": ["user0"]} if form == "merged" else {}
        export(model, made[f"{target} {form}"], x, target=target, form=form, dynamic={"x": {0: "batch"}}, **one)
    return made


def measured(made: dict[str, Path], shape: str, length: int, rounds: int) -> list[edge.Row]:
    """Latency as ratios to ONNX Runtime's bound adapter, loading, and files."""
    from audiolora.edge import Session

    x = np.random.default_rng(0).normal(size=(1, VARIABLES, length)).astype(np.float32)
    sessions = {name: Session(path, threads=1) for name, path in made.items()}
    for name in ("onnx wsum", "onnx fact", "executorch fact"):
        for adapter in ("user0", "user1"):
            sessions[name].load(adapter)
    bound, ours, merged = (
        sessions["onnx wsum"].bind("user0"),
        sessions["executorch fact"],
        sessions["executorch merged"],
    )
    ways: dict[str, Callable[[int], object]] = {
        "ONNX Runtime, bound": lambda i: bound.run(x),
        "ONNX Runtime, swapped (wsum)": lambda i: sessions["onnx wsum"].run(x, f"user{i % 2}"),
        "ONNX Runtime, swapped (fact)": lambda i: sessions["onnx fact"].run(x, f"user{i % 2}"),
        "ExecuTorch, merged": lambda i: merged.run(x),
        "ExecuTorch, base": lambda i: ours.run(x),
        "ExecuTorch, one adapter": lambda i: ours.run(x, "user0"),
        "ExecuTorch, swapped": lambda i: ours.run(x, f"user{i % 2}"),
    }
    times = edge.in_turns(ways, rounds, calls=max(4, 8192 // length))
    first, *others = ways
    rows = [edge.Row(first, shape, 1e3 * statistics.median(times[first]), "ms")]
    for way in others:
        ratios = [one / other for one, other in zip(times[way], times[first], strict=True)]
        rows.append(edge.Row(f"{way} ÷ {first}", shape, statistics.median(ratios), "×"))
    loads = {name: lambda i, name=name: sessions[name].load("user1") for name in ("onnx wsum", "executorch fact")}
    for name, found in edge.in_turns(loads, rounds, calls=3).items():
        rows.append(
            edge.Row(f"verify + load an adapter, {name.split()[0]}", shape, 1e3 * statistics.median(found), "ms")
        )
    return rows + files(made, shape)


def files(made: dict[str, Path], shape: str) -> list[edge.Row]:
    """Sizes on disk."""
    named = {
        "onnx wsum": ("base/base.onnx", "adapters/user0/base.onnx_adapter"),
        "executorch fact": ("base/base.pte", "adapters/user0/base.ptd", "adapters/user0/adapter.safetensors"),
        "executorch merged": ("base/base.pte",),
    }
    return [
        edge.Row(f"{name}: {file}", shape, (made[name] / file).stat().st_size / 1e3, "KB")
        for name, paths in named.items()
        for file in paths
    ]


if __name__ == "__main__":
    run(main)
