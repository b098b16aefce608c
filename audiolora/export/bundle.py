"""A bundle on disk: written whole or not at all, and read with everything refused that is not as it was written.

    base/         base.onnx | … | selftest.safetensors | manifest.json | manifest.sha256 | manifest.sig
    adapters/ID/  adapter.safetensors | base.onnx_adapter | selftest.safetensors | manifest.json | …

Each file is opened once, its bytes are hashed, and those bytes are what is used: nothing is looked at twice. The
manifest has the hash of every file, ``manifest.sha256`` has the manifest's, ``manifest.sig`` signs it, and an adapter's
manifest names the hash of the manifest of its base. Without a signature this finds accidents, with one attacks too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from audiolora.export import signing
from audiolora.export.errors import BundleError
from audiolora.export.executorch_data import DataLayout, data_file, layout_file
from audiolora.export.fields import check_id
from audiolora.export.manifests import (
    ADAPTER,
    SELFTEST,
    AdapterManifest,
    BaseManifest,
    FileEntry,
    Manifest,
    from_json,
    to_json,
)
from audiolora.export.signing import SIGNATURE_BYTES, Key, sign
from audiolora.export.tasks import check_adapter_task
from audiolora.export.tensors import read_tensors
from audiolora.files import replace_folder

MANIFEST, HASH, SIGNATURE = "manifest.json", "manifest.sha256", "manifest.sig"
_MOST_MANIFEST_BYTES = 64 * 2**20

_M = TypeVar("_M", BaseManifest, AdapterManifest)


@dataclass(frozen=True)
class Base:
    """A base that was read: its manifest, the manifest's hash, and its files."""

    manifest: BaseManifest
    sha256: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read: its manifest, the manifest's hash, its tensors by slot, and its self-test's file."""

    manifest: AdapterManifest
    sha256: str
    tensors: Mapping[str, np.ndarray]
    selftest: bytes


def read_base(bundle: str | os.PathLike[str], *, key: Key | None = None, check_signature: bool = True) -> Base:
    """The base of a bundle.

    Args:
        bundle: the folder.
        key: public key of who signed it.
        check_signature: False reads a signed bundle without a key; hashes are checked all the same.

    Raises:
        BundleError: anything that is not as it was written, and a signature without a key or a key without one.
    """
    folder = Path(bundle) / "base"
    if not folder.is_dir():
        raise BundleError(f"{bundle}: no bundle: there is no folder base in it; name one that audiolora export wrote")
    return Base(*_read_folder(folder, BaseManifest, key, check_signature))


def read_adapter(
    folder: str | os.PathLike[str], base: Base, *, key: Key | None = None, check_signature: bool = True
) -> Adapter:
    """An adapter, from ``BUNDLE/adapters/ID`` or wherever its folder lies; the folder's name is its id.

    Args:
        folder: the adapter's.
        base: what it is to go into.
        key, check_signature: as in `read_base`.

    Raises:
        BundleError: as in `read_base`; also one made for another base, and tensors that are not exactly the base's
            slots: other names, shapes, types, ranks, or values that are not finite.
    """
    folder = Path(folder)
    manifest, digest, files = _read_folder(folder, AdapterManifest, key, check_signature)
    if manifest.id != folder.name:
        raise BundleError(f"{folder}: its manifest says it is {manifest.id!r}; name the folder so, or fetch it again")
    if manifest.base != base.sha256:
        raise BundleError(
            f"{folder}: made for another base (manifest {manifest.base[:12]}, this one's is {base.sha256[:12]}); "
            "export it again over this base"
        )
    if set(files) != set(base.manifest.adapter_files()):
        raise BundleError(
            f"{folder}: it has {', '.join(sorted(files))}, and an adapter of this base has "
            f"{', '.join(base.manifest.adapter_files())}; fetch it again"
        )
    if manifest.task is not None:
        try:
            check_adapter_task(base.manifest.task, manifest.task)
        except ValueError as error:
            raise BundleError(f"{folder}: {error}; fetch it again") from None
    tensors = read_tensors(files[ADAPTER], f"{folder}/{ADAPTER}")
    check_slots(base.manifest, manifest, tensors, str(folder))
    if base.manifest.target == "executorch":
        check_data_files(base, tensors, files, str(folder))
    return Adapter(manifest, digest, tensors, files[SELFTEST])


def check_slots(base: BaseManifest, adapter: AdapterManifest, tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Nothing if these tensors are exactly what the base's slots take.

    Raises:
        BundleError: every tensor that is not, with what it has and what it must have.
    """
    slots = {slot.name: slot for slot in base.slots}
    ranks: dict[str, int] = {}
    wrong = [f"{name}: the base has no such slot" for name in sorted(tensors.keys() - slots.keys())]
    wrong += [f"{name}: missing" for name in sorted(slots.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & slots.keys()):
        tensor, wanted = tensors[name], slots[name].shape
        if tensor.dtype != np.float32 or len(wanted) != tensor.ndim:
            wrong.append(f"{name}: {tensor.dtype} {tensor.shape}, and the slot is float32 {list(wanted)}")
            continue
        for size, rule in zip(tensor.shape, wanted, strict=True):
            expected = ranks.setdefault(rule, size) if isinstance(rule, str) else rule
            if size != expected:
                wrong.append(f"{name}: {tensor.shape}, and the slot is {list(wanted)}, {expected} for {rule}")
            elif isinstance(rule, str) and not 1 <= size <= base.max_rank:
                wrong.append(f"{name}: rank {size}, and this base takes 1 to {base.max_rank}")
        if not np.isfinite(tensor).all():
            wrong.append(f"{name}: has values that are not finite")
    # Not of ranks: in a program for ExecuTorch they are sizes like others.
    rank = max((len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_A")), default=0)
    if not wrong and adapter.rank != rank:
        wrong.append(f"rank {adapter.rank} in the manifest, {rank} in the tensors")
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise BundleError(f"{where}: does not fit the base's slots: {'; '.join(wrong[:8])}{more}")


def check_data_files(base: Base, tensors: Mapping[str, np.ndarray], files: Mapping[str, bytes], where: str) -> None:
    """Nothing if the data files for ExecuTorch hold just these tensors, under the keys of the base's programs.

    Raises:
        BundleError: one that does not.
    """
    for name, graph in base.manifest.graphs.items():
        file = data_file(name)
        layout = DataLayout.from_json(base.files[layout_file(name)], layout_file(name))
        own = {slot.name: tensors[slot.name] for slot in graph.slots}
        if files[file] != (layout.written(base.files[file], own, file) if own else b""):
            raise BundleError(f"{where}/{file}: not the tensors of {ADAPTER}; fetch it again")


def verify(
    bundle: str | os.PathLike[str], *, key: Key | None = None, check_signature: bool = True
) -> dict[str, str | None]:
    """What is wrong with each part of a bundle.

    Args:
        bundle: the folder.
        key, check_signature: as in `read_base`.

    Returns:
        ``"base"`` and ``"adapters/ID"`` for each adapter, with None where all is well, else what is wrong. Where the
        base is refused, its adapters cannot be judged and are not listed.

    Example:
        >>> verify("pumps", key="pumps.pub.pem")  # doctest: +SKIP
        {'base': None, 'adapters/pump7': None}
    """
    try:
        base = read_base(bundle, key=key, check_signature=check_signature)
    except (BundleError, OSError) as error:
        return {"base": str(error)}
    found: dict[str, str | None] = {"base": None}
    try:
        folders = adapter_folders(bundle)
    except BundleError as error:
        return {**found, "adapters": str(error)}
    for folder in folders:
        try:
            read_adapter(folder, base, key=key, check_signature=check_signature)
            found[f"adapters/{folder.name}"] = None
        except (BundleError, OSError) as error:
            found[f"adapters/{folder.name}"] = str(error)
    return found


def adapter_folders(bundle: str | os.PathLike[str]) -> list[Path]:
    """The folders in ``BUNDLE/adapters``, unread; what is being written (a name with a dot in front) is left out."""
    return sorted(path for path in _adapters(bundle).glob("*") if not path.name.startswith("."))


def adapter_folder(bundle: str | os.PathLike[str], adapter_id: str) -> Path:
    """Where the adapter of this id lies.

    Raises:
        BundleError: no name of an adapter (a path, for one).
    """
    try:
        check_id(adapter_id)
    except ValueError as error:
        raise BundleError(f"{bundle}: {error}") from None
    return _adapters(bundle) / adapter_id


def _adapters(bundle: str | os.PathLike[str]) -> Path:
    adapters = Path(bundle) / "adapters"
    if adapters.is_symlink():
        raise BundleError(f"{adapters}: a link; put the folder itself there")
    return adapters


def write_folder(folder: Path, manifest: Manifest, files: Mapping[str, bytes], key: Key | None) -> str:
    """Write a base or an adapter in place of ``folder``, whole or not at all.

    Args:
        folder: ``BUNDLE/base`` or ``BUNDLE/adapters/ID``.
        manifest: with `entries` of just these files.
        files: by name.
        key: private key to sign with; None for no signature.

    Returns:
        The manifest's sha256.
    """
    assert dict(manifest.files) == entries(files), "a manifest of other files"
    text = to_json(manifest)
    digest = hashlib.sha256(text).hexdigest()
    written = {**files, MANIFEST: text, HASH: _hash_line(digest)}
    if key is not None:
        written[SIGNATURE] = sign(text, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.new")
    new.mkdir()
    try:
        for name, data in written.items():
            with open(new / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return digest


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Hash and size of each file."""
    return {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}


def _read_folder(folder: Path, cls: type[_M], key: Key | None, check: bool) -> tuple[_M, str, dict[str, bytes]]:
    if not os.path.lexists(folder):
        raise BundleError(f"{folder}: there is no such folder; fetch it, or name one that is there")
    if folder.is_symlink() or not folder.is_dir():
        raise BundleError(f"{folder}: a link, or no folder; put the folder itself there")
    text = _read_file(folder / MANIFEST, None)
    digest = hashlib.sha256(text).hexdigest()
    if _read_file(folder / HASH, len(_hash_line(digest))) != _hash_line(digest):
        raise BundleError(f"{folder / MANIFEST}: not the file that {HASH} has the hash of; fetch it again")
    there = {path.name for path in folder.iterdir()}
    _check_signed(folder, text, SIGNATURE in there, key, check)
    manifest: Any = from_json(text, "base" if cls is BaseManifest else "adapter", str(folder / MANIFEST))
    if unknown := sorted(there - {*manifest.files, MANIFEST, HASH, SIGNATURE}):
        raise BundleError(f"{folder}: {', '.join(unknown)} is not in the manifest; take it away, or fetch it again")
    files = {}
    for file, entry in manifest.files.items():
        data = _read_file(folder / file, entry.bytes)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{folder / file}: its sha256 is not the manifest's: damaged or changed; fetch it again")
        files[file] = data
    return manifest, digest, files


def _check_signed(folder: Path, text: bytes, signed: bool, key: Key | None, check: bool) -> None:
    if not check:
        return
    if key is None and signed:
        raise BundleError(
            f"{folder}: it is signed; give the public key of who signed it, or say that the signature is not to be "
            "checked (check_signature=False; on the command line --no-signature)"
        )
    if key is not None:
        if not signed:
            raise BundleError(f"{folder}: it is not signed, and a key was given; fetch it from who signs it")
        signing.check_signature(text, _read_file(folder / SIGNATURE, SIGNATURE_BYTES), key, str(folder / MANIFEST))


def _read_file(path: Path, size: int | None) -> bytes:
    """All bytes of a regular file of this size that has no other name: a link may point to what changes later."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
    except OSError as error:
        why = "a link" if os.path.islink(path) else error.strerror
        raise BundleError(f"{path}: cannot be read: {why}; fetch it again") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):  # of a folder Python would make no file
        os.close(number)
        raise BundleError(f"{path}: no regular file; put a copy of the file itself there")
    with os.fdopen(number, "rb") as file:
        status = os.fstat(number)
        if status.st_nlink > 1:
            raise BundleError(f"{path}: a link, it has another name too; put a copy of the file itself there")
        if status.st_size != size and (size is not None or status.st_size > _MOST_MANIFEST_BYTES):
            wanted = f"at most {_MOST_MANIFEST_BYTES}" if size is None else size
            raise BundleError(f"{path}: {status.st_size} bytes, not {wanted}: cut off or changed; fetch it again")
        return file.read(status.st_size)


def _hash_line(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()
