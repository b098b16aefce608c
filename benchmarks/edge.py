"""What an adapter costs on a device: bound, swapped per call, loaded, kept in memory, on disk.

    python benchmarks/edge.py                     # every shape; a few minutes
    python benchmarks/edge.py --only tcn64 --rounds 40

One thread of ONNX Runtime. The base, the same adapter bound, swapped per call (two adapters in turns) and run beside
the weights (form fact) take turns in one process, in a new random order each round; a ratio is taken within its round
and the table shows the median over rounds. Memory is that of a process of its own for each way. Weights are random.
Rows are appended to benchmarks/results/edge.csv.
"""

import csv
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from cyclopts import run
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "edge.csv"
CHANNELS, LENGTHS, RANK, VARIABLES, HORIZON = (64, 256), (64, 256, 1024), 8, 7, 24
DILATIONS, CHUNKS = (1, 2, 4, 8, 16, 32), (1, 8)
ADAPTERS = 20


@dataclass(frozen=True)
class Row:
    """One figure: its value, and the bound that it should stay under (None: for information)."""

    measure: str
    shape: str
    value: float
    unit: str
    bound: float | None = None


def main(*, only: str = "", rounds: int = 15) -> None:
    """Measure, print and append.

    Args:
        only: networks whose name contains this.
        rounds: of timing; each way is run in each.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for channels in CHANNELS:
            name = f"tcn{channels}"
            if only in name:
                bundles = {form: exported(Path(folder), channels, form) for form in ("wsum", "fact", "merged")}
                rows += [row for length in LENGTHS for row in latency(bundles, f"{name}.T{length}", length, rounds)]
                streamed = {form: exported(Path(folder), channels, form, streaming=True) for form in ("wsum", "fact")}
                rows += [row for steps in CHUNKS for row in streaming(bundles, streamed, name, steps, rounds)]
                rows += loading(bundles, name, rounds) + memory(bundles, name) + sizes(bundles, name)
                rows += quantised(Path(folder), bundles, channels, rounds)
    rows.append(Row("import audiolora.edge", "", import_s(), "s", 0.3))
    show(rows)
    save(rows)


def exported(folder: Path, channels: int, form: str, streaming: bool = False, quantize: str | None = None) -> Path:
    """A bundle with ADAPTERS adapters, signed, of a TCN forecaster; merged holds one, a quantised one two."""
    import torch
    from peft import LoraConfig, get_peft_model

    import audiolora
    from audiolora.export import export, make_keys
    from audiolora.series.nets import TCNForecaster

    torch.manual_seed(0)
    torch.set_num_threads(1)
    key = folder / "bench.key.pem"
    if not key.exists():
        make_keys(folder / "bench")
    net = TCNForecaster(VARIABLES, HORIZON, channels=channels, dilations=DILATIONS)
    config = LoraConfig(r=RANK, target_modules=["conv1", "conv2"], init_lora_weights=False)
    with audiolora.enabled():
        model = get_peft_model(net, config, adapter_name="user0")
        for i in range(1, 1 if form == "merged" else 2 if quantize else ADAPTERS):
            model.add_adapter(f"user{i}", config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    out = folder / f"tcn{channels}-{form}-{quantize}{'-stream' if streaming else ''}"
    calibration = [torch.randn(1, VARIABLES, 256) for _ in range(8)] if quantize == "qdq" else None
    how = {"streaming": streaming, "quantize": quantize, "calibration": calibration}
    export(model, out, torch.randn(2, VARIABLES, 64), form=form, key=key, **how)
    return out


def opened(bundle: Path, adapters: int):  # type: ignore[no-untyped-def]
    from audiolora.edge import Session

    session = Session(bundle, key=bundle.parent / "bench.pub.pem", threads=1)
    for i in range(adapters):
        session.load(f"user{i}")
    return session


def latency(bundles: dict[str, Path], shape: str, length: int, rounds: int) -> list[Row]:
    """Ratios to the base, and the cost of taking another adapter than the call before."""
    x = np.random.default_rng(0).normal(size=(1, VARIABLES, length)).astype(np.float32)
    wsum, fact = opened(bundles["wsum"], 2), opened(bundles["fact"], 2)
    base, bound, fixed = wsum.bind(None), wsum.bind("user0"), fact.bind("user0")
    ways: dict[str, Callable[[int], object]] = {
        "base": lambda i: base.run(x),
        "base again": lambda i: base.run(x),
        "bound": lambda i: bound.run(x),
        "swapped wsum": lambda i: wsum.run(x, f"user{i % 2}"),
        "same wsum": lambda i: wsum.run(x, "user0"),
        "swapped fact": lambda i: fact.run(x, f"user{i % 2}"),
        "bound fact": lambda i: fixed.run(x),
    }
    times = in_turns(ways, rounds, calls=max(4, 8192 // length))
    rows = [Row("base", shape, 1e3 * statistics.median(times["base"]), "ms")]
    bounds = {"bound": 1.05, "swapped wsum": 1.25 if length >= 256 else None}
    for way in ("base again", "bound", "swapped wsum", "swapped fact", "bound fact"):
        ratios = [one / other for one, other in zip(times[way], times["base"], strict=True)]
        rows.append(Row(f"{way} ÷ base", shape, statistics.median(ratios), "×", bounds.get(way)))
    swap = [one - other for one, other in zip(times["swapped wsum"], times["same wsum"], strict=True)]
    return [*rows, Row("swap", shape, 1e3 * statistics.median(swap), "ms", 1.0)]


def quantised(folder: Path, bundles: dict[str, Path], channels: int, rounds: int) -> list[Row]:
    """int8 weights (wsum) and static QDQ (fact) against float: size, time, and how far an adapter's output is off."""
    made = {
        "int8": exported(folder, channels, "wsum", quantize="int8"),
        "qdq": exported(folder, channels, "fact", quantize="qdq"),
    }
    sessions = {"float": opened(bundles["wsum"], 2), **{kind: opened(made[kind], 2) for kind in made}}
    draw = np.random.default_rng(1)
    rows = []
    for kind in made:
        size, full = ((path / "base" / "base.onnx").stat().st_size for path in (made[kind], bundles["wsum"]))
        rows.append(Row(f"{kind} base.onnx ÷ float", f"tcn{channels}", size / full, "×"))
        x = draw.normal(size=(16, VARIABLES, 256)).astype(np.float32)
        y, wanted = (sessions[name].run(x, "user0") for name in (kind, "float"))
        rows.append(Row(f"{kind} off float", f"tcn{channels}", np.linalg.norm(y - wanted) / np.linalg.norm(wanted), ""))
    for length in LENGTHS:
        x = draw.normal(size=(1, VARIABLES, length)).astype(np.float32)
        ways: dict[str, Callable[[int], object]] = {}
        for kind, session in sessions.items():
            bound = session.bind("user0")
            ways[f"{kind} bound"] = lambda i, bound=bound, x=x: bound.run(x)
            ways[f"{kind} swapped"] = lambda i, session=session, x=x: session.run(x, f"user{i % 2}")
        times = in_turns(ways, rounds, calls=max(4, 8192 // length))
        for kind in made:
            for way in ("bound", "swapped"):
                pairs = zip(times[f"{kind} {way}"], times[f"float {way}"], strict=True)
                ratio = statistics.median(one / other for one, other in pairs)
                rows.append(Row(f"{kind} {way} ÷ float {way}", f"tcn{channels}.T{length}", ratio, "×"))
    return rows


def streaming(bundles: dict[str, Path], streamed: dict[str, Path], name: str, steps: int, rounds: int) -> list[Row]:
    """The next steps of a stream against the window that ends with them, run anew: bound, without a stream's states."""
    draw = np.random.default_rng(0)
    reads = 1 + 4 * sum(DILATIONS)  # two convolutions of three taps a dilation
    window = draw.normal(size=(1, VARIABLES, reads - 1 + steps)).astype(np.float32)
    chunk = window[..., -steps:].copy()
    wsum, fact, again = (
        opened(streamed["wsum"], 1),
        opened(streamed["fact"], 1),
        opened(bundles["wsum"], 1).bind("user0"),
    )
    ways = {
        "bound": wsum.bind("user0").stream(),
        "swapped wsum": wsum.stream("user0"),
        "swapped fact": fact.stream("user0"),
    }
    calls: dict[str, Callable[[int], object]] = {
        way: lambda i, push=stream.push: push(chunk) for way, stream in ways.items()
    }
    times = in_turns(calls | {"window": lambda i: again.run(window)}, rounds, calls=64)
    shape = f"{name}.chunk{steps}"
    rows = [Row("window run anew, bound", shape, 1e3 * statistics.median(times["window"]), "ms")]
    for way in ways:
        ratios = [one / other for one, other in zip(times[way], times["window"], strict=True)]
        bound = 1 / 8 if steps == 1 and way == "bound" else None
        rows.append(Row(f"stream, {way}", shape, 1e3 * statistics.median(times[way]), "ms"))
        rows.append(Row(f"stream, {way} ÷ window", shape, statistics.median(ratios), "×", bound))
    return rows


def in_turns(ways: dict[str, Callable[[int], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds a call, the smallest of each round's calls."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    draw = random.Random(0)
    for call in ways.values():
        call(0)
    for _ in range(rounds):
        for way in draw.sample(sorted(ways), len(ways)):
            found = []
            for i in range(calls):
                begin = time.perf_counter()
                ways[way](i)
                found.append(time.perf_counter() - begin)
            times[way].append(min(found))
    return times


def loading(bundles: dict[str, Path], name: str, rounds: int) -> list[Row]:
    """Reading, verifying (hashes, signature, slots) and loading an adapter; making a session of each kind."""
    session = opened(bundles["wsum"], 1)
    ways: dict[str, Callable[[int], object]] = {
        "load": lambda i: session.load("user1"),
        "bind": lambda i: session.bind("user0"),
        "session": lambda i: opened(bundles["wsum"], 0),
    }
    times = in_turns(ways, rounds, calls=3)
    bounds = {"load": 5.0}
    labels = {"load": "verify + load an adapter", "bind": "bind", "session": "verify + open a base"}
    return [Row(labels[w], name, 1e3 * statistics.median(times[w]), "ms", bounds.get(w)) for w in ways]


def memory(bundles: dict[str, Path], name: str) -> list[Row]:
    """One session with ADAPTERS adapters against one merged session: what each adds to a process."""
    merged, many = added_bytes(bundles["merged"], 0), added_bytes(bundles["wsum"], ADAPTERS)
    return [
        Row("one merged session", name, merged / 2**20, "MiB"),
        Row(f"one session, {ADAPTERS} adapters", name, many / 2**20, "MiB"),
        Row(f"{ADAPTERS} adapters ÷ one merged", name, many / merged, "×", 1.5),
    ]


MEMORY = """
import sys
import numpy as np
import onnxruntime, audiolora.edge
sys.path.insert(0, {here!r})
import edge
from pathlib import Path
def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = resident()
session = edge.opened(Path({bundle!r}), {adapters})
x = np.zeros((1, {variables}, 256), np.float32)
for name in session.loaded or [None]:
    session.run(x, name)
print(resident() - before)
"""


def added_bytes(bundle: Path, adapters: int) -> float:
    """What opening a session and running every adapter adds to a process; the median of three."""
    here = str(Path(__file__).parent)
    program = MEMORY.format(here=here, bundle=str(bundle), adapters=adapters, variables=VARIABLES)
    found = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    return statistics.median(float(one.stdout) for one in found)


def sizes(bundles: dict[str, Path], name: str) -> list[Row]:
    """Bytes on disk."""
    from audiolora.export.tensors import read_tensors

    rows = [Row("base.onnx", name, (bundles["wsum"] / "base" / "base.onnx").stat().st_size / 1e3, "KB")]
    folder = bundles["wsum"] / "adapters" / "user0"
    tensors = read_tensors((folder / "adapter.safetensors").read_bytes(), "adapter")
    own = sum(value.nbytes for value in tensors.values())
    for file in ("adapter.safetensors", "base.onnx_adapter"):
        size = (folder / file).stat().st_size
        rows += [Row(file, name, size / 1e3, "KB"), Row(f"{file} ÷ its parameters", name, size / own, "×", 1.1)]
    return rows


def import_s() -> float:
    """Seconds to import audiolora.edge in a new process, NumPy included; the smallest of five."""
    program = "import time; t = time.perf_counter(); import audiolora.edge; print(time.perf_counter() - t)"
    done = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(5)
    ]
    return min(float(one.stdout) for one in done)


def show(rows: list[Row]) -> None:
    """As a table; what is over its bound is red."""
    table = Table("measure", "shape", "value", "bound", box=None)
    for row in rows:
        bound = "" if row.bound is None else f"≤ {row.bound:g}"
        over = row.bound is not None and row.value > row.bound
        value = f"{row.value:.3g} {row.unit}"
        table.add_row(row.measure, row.shape, f"[red]{value}[/red]" if over else value, bound)
    Console().print(table)


def save(rows: list[Row], results: Path = RESULTS, runtimes: tuple[str, ...] = ("onnxruntime",)) -> None:
    """Append to the CSV, with the versions of these runtimes."""
    from conv_step import cpu_name

    versions = {name: version(name) for name in ("audiolora", *runtimes)}
    results.parent.mkdir(exist_ok=True)
    new = not results.exists()
    with open(results, "a", newline="", encoding="utf-8") as file:
        for row in rows:
            entry = {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": cpu_name(), **versions, **asdict(row)}
            entry["value"] = f"{row.value:.4g}"
            writer = csv.DictWriter(file, entry)
            if new:
                writer.writeheader()
                new = False
            writer.writerow(entry)


if __name__ == "__main__":
    run(main)
