"""Who made a bundle: an Ed25519 signature (RFC 8032) of its manifest, which holds the digest of every other file.

Keys are PEM files, as OpenSSL writes them; the signature lies beside the manifest, 64 bytes in base64. Needs the extra ``signatures``.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from training.contract.errors import BundleUnsigned, KeyFileError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE: Final = "manifest.json.sig"
_CONTEXT: Final = b"skillet bundle manifest\n"
"""Signed before the manifest, so that a signature made for something else fits no bundle."""
_MAX_KEY_BYTES: Final = 64 * 1024
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True)
class PublicKey:
    """A key that bundles may be signed with."""

    path: Path
    key: "Ed25519PublicKey"

    @classmethod
    def read(cls, path: Path | str) -> "PublicKey":
        """From a PEM file. Raises KeyFileError."""
        data = _read(Path(path))
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(data)
        except Exception as error:
            raise KeyFileError(f"{path}: expected a public key in PEM, got {error}; {_HOW_PUBLIC}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(f"{path}: expected an Ed25519 public key, got {type(key).__name__}; {_HOW_PUBLIC}")
        return cls(Path(path), key)

    @property
    def fingerprint(self) -> str:
        """The first 16 digits of the SHA-256 of the raw key, to compare keys by eye."""
        return _fingerprint(self.key)

    def fits(self, signature: bytes, manifest: bytes) -> bool:
        """Whether this key made the signature of the manifest."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, _CONTEXT + manifest)
        except InvalidSignature:
            return False
        return True


def sign(manifest: bytes, key_file: Path | str) -> tuple[bytes, str]:
    """The content of the signature's file, and the fingerprint of the public key that it fits. Raises KeyFileError."""
    key = _private_key(Path(key_file))
    return base64.b64encode(key.sign(_CONTEXT + manifest)) + b"\n", _fingerprint(key.public_key())


def check_signature(folder: Path, manifest: bytes, keys: Sequence[PublicKey]) -> None:
    """Raise BundleUnsigned unless one of the keys signed the manifest."""
    file = folder / SIGNATURE
    trusted = ", ".join(f"{key.path} ({key.fingerprint})" for key in keys)
    if file.is_symlink() or not file.is_file():
        raise BundleUnsigned(
            f"expected {SIGNATURE} in {folder}, made with the key of {trusted}, found none; sign it with "
            f"'python -m training sign --bundle {folder} --key KEY.pem', or serve without --bundle-key"
        )
    with file.open("rb") as content:
        data = content.read(1024)
    try:
        signature = base64.b64decode(data.strip(), validate=True)
    except binascii.Error as error:
        raise BundleUnsigned(f"{file}: expected {_SIGNATURE_BYTES} bytes in base64, got something else ({error}); sign it again") from error
    if len(signature) != _SIGNATURE_BYTES:
        raise BundleUnsigned(f"{file}: expected {_SIGNATURE_BYTES} bytes in base64, got {len(signature)}; sign it again")
    if not any(key.fits(signature, manifest) for key in keys):
        raise BundleUnsigned(
            f"{file} was made with none of the keys that are trusted, {trusted}, or for another manifest; "
            "ask the bundle's maker for the public key, and for the bundle again"
        )


_HOW: Final = "make one with 'openssl genpkey -algorithm ed25519 -out KEY.pem'"
_HOW_PUBLIC: Final = "make one from the private key with 'openssl pkey -in KEY.pem -pubout -out PUBLIC.pem'"


def _private_key(path: Path) -> "Ed25519PrivateKey":
    data = _read(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password=None)
    except Exception as error:
        raise KeyFileError(f"{path}: expected a private key in PEM without a password, got {error}; {_HOW}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: expected an Ed25519 private key, got {type(key).__name__}; {_HOW}")
    return key


def _fingerprint(key: "Ed25519PublicKey") -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _read(path: Path) -> bytes:
    """A key's file. Raises KeyFileError for one that is not there, too large, or without the library that reads it."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise KeyFileError("signatures need the extra `signatures`: pip install 'skillet[signatures]'") from error
    try:
        with path.open("rb") as content:
            data = content.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror or error}") from error
    if len(data) > _MAX_KEY_BYTES:
        raise KeyFileError(f"{path}: expected a key in PEM, got more than {_MAX_KEY_BYTES} bytes")
    return data
