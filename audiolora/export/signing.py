"""Ed25519 (RFC 8032): who made a bundle. The keys are the user's: the private one signs, devices hold the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.export.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Key = str | os.PathLike[str] | bytes
"""A PEM file, or what is in it; a public key may also be its 32 bytes."""

SIGNATURE_BYTES = 64
_RAW_BYTES = 32


def make_keys(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Make a key pair: ``PATH.key.pem`` (private: keep it, nobody else may read it) and ``PATH.pub.pem`` (for devices).

    Args:
        path: the two files without their endings; the folder is made if need be.

    Returns:
        The private key's file and the public key's.

    Raises:
        ValueError: one of the files is there already: a key that is lost cannot be made again.

    Example:
        >>> make_keys("keys/pumps")  # doctest: +SKIP
        (PosixPath('keys/pumps.key.pem'), PosixPath('keys/pumps.pub.pem'))
    """
    ed25519, serialization = _cryptography()
    stem = Path(path)
    private, public = stem.with_name(stem.name + ".key.pem"), stem.with_name(stem.name + ".pub.pem")
    if there := [str(file) for file in (private, public) if os.path.lexists(file)]:
        raise ValueError(f"{', '.join(there)}: there already, and a key that is overwritten is lost; take another name")
    key = ed25519.Ed25519PrivateKey.generate()
    stem.parent.mkdir(parents=True, exist_ok=True)
    pem, raw = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write_new(private, key.private_bytes(pem, raw, serialization.NoEncryption()), 0o600)
    _write_new(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo), 0o644)
    return private, public


def sign(data: bytes, key: Key) -> bytes:
    """The signature (64 bytes) of ``data`` by a private key.

    Raises:
        ValueError: no Ed25519 private key.

    Example:
        >>> private, public = make_keys("keys/pumps")  # doctest: +SKIP
        >>> check_signature(b"data", sign(b"data", private), public, "data")  # doctest: +SKIP
    """
    ed25519, serialization = _cryptography()
    try:
        loaded = serialization.load_pem_private_key(_bytes_of(key), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{_name_of(key)}: no private key without a password, as PEM: {error}") from None
    if not isinstance(loaded, ed25519.Ed25519PrivateKey):
        raise ValueError(f"{_name_of(key)}: a {type(loaded).__name__}, and Ed25519 is needed; make one: audiolora keys")
    signature: bytes = loaded.sign(data)
    return signature


def check_signature(data: bytes, signature: bytes, key: Key, where: str) -> None:
    """Nothing if ``signature`` is that of ``data`` by the owner of this public key.

    Args:
        data: the signed bytes.
        signature: 64 bytes.
        key: the public key.
        where: what is signed, for the message.

    Raises:
        BundleError: it is not.
        ValueError: no Ed25519 public key.
    """
    from cryptography.exceptions import InvalidSignature

    public = load_public(key)
    try:
        public.verify(signature, data)
    except InvalidSignature:
        raise BundleError(
            f"{where}: the signature is not that of {_name_of(key)} over this manifest: it was changed, or somebody "
            "else signed it; fetch it again from where it was made"
        ) from None


def load_public(key: Key) -> Ed25519PublicKey:
    """A public key from its PEM file, its PEM text or its 32 bytes.

    Raises:
        ValueError: it is none.
    """
    ed25519, serialization = _cryptography()
    data = _bytes_of(key)
    if len(data) == _RAW_BYTES:
        return ed25519.Ed25519PublicKey.from_public_bytes(data)
    try:
        loaded = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{_name_of(key)}: no public key as PEM (give the file that ends in .pub.pem): {error}"
        ) from None
    if not isinstance(loaded, ed25519.Ed25519PublicKey):
        raise ValueError(f"{_name_of(key)}: a {type(loaded).__name__}, and Ed25519 is needed; make one: audiolora keys")
    return loaded


def _bytes_of(key: Key) -> bytes:
    if _is_text(key):
        return str(key).encode()
    return key if isinstance(key, bytes) else Path(key).read_bytes()


def _is_text(key: Key) -> bool:
    """Whether it is a PEM file's text: no path, and nothing to repeat in a message."""
    return isinstance(key, str) and key.lstrip().startswith("-----BEGIN")


def _name_of(key: Key) -> str:
    return "the key given" if isinstance(key, bytes) or _is_text(key) else str(key)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _cryptography() -> tuple[Any, Any]:
    """The modules ed25519 and serialization."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ImportError('signatures need cryptography; pip install "audiolora[edge]"') from error
    return ed25519, serialization
