"""Keys and signatures; the signature is checked by hand against RFC 8032's first test vectors."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from audiolora.export.errors import BundleError
from audiolora.export.signing import check_signature, load_public, make_keys, sign

# RFC 8032, section 7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNED = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def pem(key: object) -> bytes:
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*formats)  # type: ignore[attr-defined]


def test_a_signature_is_rfc_8032s() -> None:
    assert sign(b"\x72", pem(ed25519.Ed25519PrivateKey.from_private_bytes(SECRET))).hex() == SIGNED
    check_signature(b"\x72", bytes.fromhex(SIGNED), PUBLIC, "vector")


def test_a_pair_signs_and_checks(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "new" / "pumps.v1")
    assert private.name == "pumps.v1.key.pem" and public.name == "pumps.v1.pub.pem"
    check_signature(b"data", sign(b"data", private), public, "data")
    for data, signature in ((b"date", sign(b"data", private)), (b"data", bytes(64)), (b"data", b"")):
        with pytest.raises(BundleError, match="somebody else signed it"):
            check_signature(data, signature, public, "data")


def test_nobody_else_reads_the_private_key(tmp_path: Path) -> None:
    private, _ = make_keys(tmp_path / "pumps")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, _ = make_keys(tmp_path / "pumps")
    before = private.read_bytes()
    with pytest.raises(ValueError, match="there already"):
        make_keys(tmp_path / "pumps")
    assert private.read_bytes() == before


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "pumps")
    with pytest.raises(ValueError, match="give the file that ends in .pub.pem"):
        load_public(private)
    with pytest.raises(ValueError, match="no private key without a password"):
        sign(b"data", public)
    with pytest.raises(ValueError, match="Ed25519 is needed"):
        sign(b"data", pem(ec.generate_private_key(ec.SECP256R1())))
