"""What an adapter costs a Whisper on a device: the encoder by its context, the decoder by the token.

    python benchmarks/edge_whisper.py

A Whisper of tiny's shapes with random weights, LoRA in its convolutions (r = 32) and attention (r = 4), one thread. The
base, the adapter bound and swapped in either form, and transformers with the base alone take turns, as in
benchmarks/edge.py; rows are appended to benchmarks/results/edge.csv.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cyclopts import run
from edge import Row, in_turns, save, show
from transformers import WhisperConfig, WhisperForConditionalGeneration

import audiolora
from audiolora.edge import Network, Session
from audiolora.export import export
from audiolora.export.whisper import whisper_parts
from audiolora.speech.whisper.context import audio_context

FRAMES, BATCHES, PAST = (100, 300, 3000), (1, 8), 8


def main(*, rounds: int = 15) -> None:
    """Measure, print and append.

    Args:
        rounds: of timing; each way is run in each.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}
    heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    whisper = WhisperForConditionalGeneration(WhisperConfig(vocab_size=51_864, **sizes, **heads)).eval()
    adapted = audiolora.adapt(whisper, r={"conv": 32, "attention": 4}, targets=["conv", "attention"])
    parts = whisper_parts(whisper, torch.randn(1, 80, 16))
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for form in ("wsum", "fact"):
            export(adapted, Path(folder) / form, parts=parts, form=form)
            sessions[form] = Session(Path(folder) / form, threads=1)
            sessions[form].load("default")
        networks = {"base": sessions["wsum"].bind(), "bound": sessions["wsum"].bind("default")}
    networks |= {f"swapped {form}": session.network("default") for form, session in sessions.items()}
    rows = []
    with adapted.disable_adapter(), torch.no_grad():
        for frames in FRAMES:
            rows += encoder(networks, whisper, frames, rounds)
        for batch in BATCHES:
            rows += step(networks, whisper, batch, rounds)
    show(rows)
    save(rows)


def encoder(networks: dict[str, Network], whisper: WhisperForConditionalGeneration, n: int, rounds: int) -> list[Row]:
    """One clip of n frames."""
    x = torch.randn(1, 80, n)
    ways: dict[str, Callable[[int], object]] = {
        name: lambda i, network=network: network.run(x.numpy(), "encoder") for name, network in networks.items()
    }
    with audio_context(whisper, n):
        ways["transformers"] = lambda i: whisper.model.encoder(x)
        return ratios(in_turns(ways, rounds, calls=max(2, 600 // n)), f"whisper-tiny.encoder.T{n}")


def step(networks: dict[str, Network], whisper: WhisperForConditionalGeneration, n: int, rounds: int) -> list[Row]:
    """One token of n clips of 3 s, after PAST others."""
    x, past, token = (
        torch.randn(n, 80, 300),
        torch.zeros(n, PAST, dtype=torch.long),
        torch.zeros(n, 1, dtype=torch.long),
    )
    base = networks["base"]
    names = [output.name for output in base.manifest.graphs["encoder"].outputs]
    heard = dict(zip(names, base.run(x.numpy(), "encoder"), strict=True))
    _, cache = base.step({"tokens": past.numpy(), **heard}, None, "decoder")
    given: dict[str, np.ndarray] = {"tokens": token.numpy(), **heard}
    ways: dict[str, Callable[[int], object]] = {
        name: lambda i, network=network: network.step(given, cache, "decoder") for name, network in networks.items()
    }
    with audio_context(whisper, 300):
        hidden = whisper.model.encoder(x)
        kept = whisper(encoder_outputs=hidden, decoder_input_ids=past, use_cache=True).past_key_values

        def theirs(i: int) -> None:
            whisper(encoder_outputs=hidden, decoder_input_ids=token, past_key_values=kept, use_cache=True)
            kept.self_attention_cache.crop(-1)  # the token that was added

        return ratios(in_turns(ways | {"transformers": theirs}, rounds, calls=6), f"whisper-tiny.step.N{n}")


def ratios(times: dict[str, list[float]], shape: str) -> list[Row]:
    """To the base, each within its round."""
    bounds = {"bound": 1.05, "swapped fact": 1.25}
    rows = [Row("base", shape, 1e3 * statistics.median(times["base"]), "ms")]
    for way in times.keys() - {"base"}:
        each = [one / other for one, other in zip(times[way], times["base"], strict=True)]
        rows.append(Row(f"{way} ÷ base", shape, statistics.median(each), "×", bounds.get(way)))
    return sorted(rows, key=lambda row: row.measure)


if __name__ == "__main__":
    run(main)
