"""What an engine's bits depend on, and one short name for all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from detinfer import __version__
from detinfer.errors import ConfigError
from detinfer.models.loader import ModelFiles, config_digest, tokenizer_digest, weights_digest

CONTRACT = "portable-1"  # the arithmetic contract, docs/arithmetic.md: profile and version
SAMPLER_VERSION = "1"  # rules 7 and 8 of the contract: filters, noise, checksum

PARTS = (
    "weights",
    "weight_format",
    "tokenizer",
    "config",
    "contract",
    "profile",
    "dtype",
    "rope",
    "sampler",
)


@dataclass(frozen=True)
class Fingerprint:
    """Two engines of equal fingerprint answer the same request with the same bits.

    Thread counts, instruction sets, batch limits and cache sizes are not in it: under the
    ``portable`` profile no bit depends on them.

    Attributes:
        parts: what the bits depend on, each by name (``PARTS``) as a short string.

    Raises:
        ConfigError: a part is missing, unknown or not a string.
    """

    parts: Mapping[str, str]

    def __post_init__(self) -> None:
        if set(self.parts) != set(PARTS):
            odd = sorted(set(self.parts) ^ set(PARTS))
            raise ConfigError(f"fingerprint: parts missing or unknown: {', '.join(odd)}")
        for name, value in self.parts.items():
            if not isinstance(value, str) or not value:
                raise ConfigError(f"fingerprint: {name}: got {value!r}, expected a string")
        object.__setattr__(self, "parts", {name: self.parts[name] for name in PARTS})

    @property
    def system_fingerprint(self) -> str:
        """``detinfer-0.1.0-portable-1-`` and 12 hex digits of SHA-256 over the parts."""
        text = json.dumps(dict(self.parts), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"detinfer-{__version__}-{self.parts['contract']}-{digest[:12]}"


def make_fingerprint(files: ModelFiles, *, dtype: str, rope: str) -> Fingerprint:
    """The fingerprint of a model on the ``portable`` profile.

    Args:
        files: the model.
        dtype: dtype of activations and KV cache, ``"float32"`` and so on.
        rope: how the frequencies were pinned, as the loader of the model puts it.
    """
    return Fingerprint(
        {
            "weights": weights_digest(files),
            "weight_format": files.weight_format,
            "tokenizer": tokenizer_digest(files),
            "config": config_digest(files),
            "contract": CONTRACT,
            "profile": CONTRACT.rsplit("-", 1)[0],
            "dtype": dtype,
            "rope": rope,
            "sampler": SAMPLER_VERSION,
        }
    )
