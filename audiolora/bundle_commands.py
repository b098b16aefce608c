"""``audiolora export | verify | keys``: bundles for devices, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative="")]

_EXIT_WRONG = 2


def export(
    *runs: Path,
    out: Path,
    network: str | None = None,
    base: Path | None = None,
    target: Literal["onnx", "executorch"] = "onnx",
    form: Literal["wsum", "fact", "merged"] | None = None,
    sign: Path | None = None,
    id: str | None = None,
    max_rank: int | None = None,
    shape: str | None = None,
    fixed_length: Flag = False,
    processor: Path | None = None,
    streaming: Flag = False,
    dora: Flag = False,
    web: Flag = False,
    quantize: Literal["int8", "qdq"] | None = None,
    calibrate: Path | None = None,
    evaluate: Path | None = None,
    overwrite: Flag = False,
) -> None:
    """Write a network and the adapters of runs as a bundle for devices.

    The bundle is run by its runtime and compared with torch; where they differ, nothing is left.

    Args:
        runs: a finished run of recipes/sensor_forecast.py or sensor_fleet.py, with an adapter for each device that
            uses one; finished runs of recipes/asr_whisper.py over one Whisper, or of recipes/asr_ctc.py over one CTC
            model; or folders of adapters (PEFT's, or what
            Forecaster.save wrote). A folder's name is the adapter's id.
        out: the bundle's folder.
        network: what makes the base network, as MODULE:FUNCTION; the module is looked for here, too. A recipe's run
            knows its own.
        base: the base's weights, from Forecaster.save, if the function does not load them; for speech runs,
            another place for it.
        target: what runs it: ONNX Runtime, or ExecuTorch with XNNPACK.
        form: what a run does with an adapter: add it to the weights (wsum), run it beside them (fact, for inputs of a
            few steps), or nothing (merged: one adapter, fixed). By default wsum, and fact for speech runs and
            ExecuTorch.
        sign: private key to sign with; audiolora keys makes one.
        id: the base's name; by default the folder's.
        max_rank: no adapter of a larger rank will be loaded; 64, or for executorch what the adapters have.
        shape: of an example input, such as 2,5,168, where no run says it.
        fixed_length: for a network that takes one length alone.
        processor: for a CTC model (wav2vec2, HuBERT, WavLM, …): the folder of its transformers' processor; by default
            processor/ in a run.
        streaming: for causal networks: what came before is kept from one chunk of a stream to the next.
        dora: leave room for DoRA adapters that are added later.
        web: add base.web.onnx for browsers.
        quantize: int8: weights in int8, four times smaller; qdq: activations too, faster, with form fact or merged.
        calibrate: for qdq, rows (CSV or Parquet) as the device will see them; forecasters alone.
        evaluate: what to measure on what quantising costs: for forecasters rows (CSV or Parquet), for speech utterances
            as recipes/asr_whisper.py takes them (a manifest, a folder, prompts-en, …). All are heard as they are; of
            the data that a run was trained on, what it held out, through the run's channel.
        overwrite: replace the bundle that is there.
    """
    from rich.console import Console

    from audiolora.export.runs import export_runs

    with Console(stderr=True).status("exporting, and comparing with torch …"):
        made = export_runs(
            runs, out, network, base=base, shape=shape, fixed_length=fixed_length, processor=processor, target=target,
            form=form, key=sign, id=id, max_rank=max_rank, streaming=streaming, dora=dora, web=web, overwrite=overwrite,
            quantize=quantize, calibrate=calibrate, evaluate=evaluate,
        )  # fmt: skip
    graphs = [f"base/{made.manifest.graph_file(graph)}" for graph in made.manifest.graphs]
    for name, off in made.differences.items():
        files = graphs if name == "base" else [f"adapters/{name}/adapter.safetensors"]
        size_kb = sum(made.bytes[file] for file in files) / 1e3
        print(f"{name:<20} {size_kb:9,.1f} KB   off torch by at most {off:.1e}")
    if made.portable:
        print(f"portable  {', '.join(made.portable)}: not XNNPACK's, and slower")
    if made.accuracy is not None:
        print(made.accuracy)
    print(f"bundle    {out}\nverify    audiolora verify {out}" + (f" --key {_public(sign)}" if sign else ""))


def verify(bundle: Path, /, *, key: Path | None = None, no_signature: Flag = False, self_test: Flag = False) -> int:
    """Say what is wrong with a bundle: hashes, signatures, names, sizes, ranks.

    Exit status: 0, all is well; 2, something is wrong.

    Args:
        bundle: its folder.
        key: public key of who signed it.
        no_signature: do not look at a signature that is there.
        self_test: also run the stored input through the base and every adapter.
    """
    from audiolora.export.bundle import verify as verify_bundle
    from audiolora.export.errors import BundleError

    how: dict[str, Any] = {"key": key, "check_signature": not no_signature}
    found = verify_bundle(bundle, **how)
    if self_test and found["base"] is None:
        from audiolora.edge import Session

        session = Session(bundle, **how)
        for part in [part for part, wrong in found.items() if wrong is None]:
            name = None if part == "base" else part.removeprefix("adapters/")
            try:
                if name is not None:
                    session.load(name)
                session.selftest(name)
            except BundleError as error:
                found[part] = str(error)
    for part, wrong in found.items():
        print(f"{part}: {'well' if wrong is None else wrong}")
    return _EXIT_WRONG if any(found.values()) else 0


def keys(path: Path, /) -> None:
    """Make a key pair: PATH.key.pem signs bundles and stays with you, PATH.pub.pem goes to the devices.

    Args:
        path: the two files without their endings.
    """
    from audiolora.export.signing import make_keys

    private, public = make_keys(path)
    print(f"private   {private}   keep it: who has it can sign in your name\npublic    {public}")


def _public(private: Path) -> str:
    return str(private).replace(".key.pem", ".pub.pem")
