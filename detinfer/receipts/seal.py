"""A receipt's seal: the hash of its canonical JSON (RFC 8785), and who signed that (Ed25519)."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from detinfer.errors import ConfigError
from detinfer.receipts.receipt import ReceiptError, Value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEAL, SIGNATURE, ALGORITHM = "sha256", "signature", "ed25519"
_CONTEXT = b"detinfer-receipt-1\n"  # a key that signs other things too signs no receipt by them


def canonical(value: Value) -> bytes:
    """Return canonical JSON (RFC 8785), without seal and signature.

    Raises:
        ReceiptError: the value has none.
    """
    import rfc8785

    content = {name: part for name, part in value.items() if name not in (SEAL, SIGNATURE)}
    try:
        return rfc8785.dumps(content)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise ReceiptError(f"receipt: no canonical JSON ({error})") from None


def seal(value: Value, key: Ed25519PrivateKey | None = None) -> Value:
    """Return a receipt with its seal, and with a signature where there is a key."""
    content = canonical(value)
    sealed = {**value, SEAL: hashlib.sha256(content).hexdigest()}
    if key is not None:
        sealed[SIGNATURE] = {
            "algorithm": ALGORITHM,
            "public_key": _text(key.public_key().public_bytes_raw()),
            "value": _text(key.sign(_CONTEXT + content)),
        }
    return sealed


def opened(value: Value) -> Value:
    """Return what is sealed."""
    return {name: part for name, part in value.items() if name not in (SEAL, SIGNATURE)}


def is_intact(value: Value) -> bool:
    """Return whether the seal is that of the content."""
    return value.get(SEAL) == hashlib.sha256(canonical(value)).hexdigest()


def signer(value: Value) -> str | None:
    """Return the public key whose signature a receipt has, in base64; None without a signature.

    Raises:
        ReceiptError: a signature that is none, or not of this content.
        ConfigError: the package that verifies it is not installed.
    """
    signature = value.get(SIGNATURE)
    if signature is None:
        return None
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(signature, dict) or signature.get("algorithm") != ALGORITHM:
        raise ReceiptError(f"signature: expected one by {ALGORITHM}")
    try:
        public = base64.b64decode(signature["public_key"], validate=True)
        mark = base64.b64decode(signature["value"], validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(mark, _CONTEXT + canonical(value))
    except InvalidSignature:
        raise ReceiptError("signature: not of this content by this key") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ReceiptError(f"signature: cannot be read ({error})") from None
    return str(signature["public_key"])


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key to sign with: Ed25519, PEM, without a password.

    Raises:
        ConfigError: it cannot be read as one.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"--receipt-key: {path}: no private key in PEM ({error})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"--receipt-key: {path}: got another kind of key, expected Ed25519")
    return key


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError(
            "signatures need the package cryptography: pip install 'detinfer-server[sign]'"
        ) from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
