"""What an engine's bits depend on, and one short name for all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from detinfer import __version__
from detinfer.checkpoint.loader import load_tokenizer
from detinfer.checkpoint.model_files import ModelFiles, config_digest, weights_digest
from detinfer.checkpoint.tokenizer import tokenizer_digest
from detinfer.errors import ConfigError

# The arithmetic contract, docs/arithmetic.md: profile and version.
PORTABLE_CONTRACT = "portable-1"
NATIVE_CONTRACT = "native-1"
SAMPLER_VERSION = "1"  # rules 7 and 8 of the contract: filters, noise, checksum

# Packages whose releases decide what is computed: transformers reads the configuration and has the
# models' code, tokenizers makes tokens of text and back, Jinja renders chat templates, llguidance
# says which tokens keep to a grammar.
PACKAGES = ("transformers", "tokenizers", "jinja2", "llguidance")

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
    "length",
    *PACKAGES,
)
# What the bits of profile ``native`` depend on besides.
NATIVE_PARTS = ("architecture", "compiler", "kernel_sources")


@dataclass(frozen=True)
class Fingerprint:
    """Two engines of equal fingerprint answer the same request with the same bits.

    Thread counts, instruction sets, batch limits and cache sizes are not in it: under the
    ``portable`` profile no bit depends on them. ``length`` is in it: what bounds an answer whose
    request does not.

    Attributes:
        parts: what the bits depend on, each by name (``PARTS``, under the ``native`` profile
            ``NATIVE_PARTS`` too) as a short string.

    Raises:
        ConfigError: a part is missing, unknown or not a string.
    """

    parts: Mapping[str, str]

    def __post_init__(self) -> None:
        native = self.parts.get("profile") == "native"
        expected = (*PARTS, *NATIVE_PARTS) if native else PARTS
        if set(self.parts) != set(expected):
            odd = sorted(set(self.parts) ^ set(expected))
            raise ConfigError(f"fingerprint: parts missing or unknown: {', '.join(odd)}")
        for name, value in self.parts.items():
            if not isinstance(value, str) or not value:
                raise ConfigError(f"fingerprint: {name}: got {value!r}, expected a string")
        object.__setattr__(self, "parts", {name: self.parts[name] for name in expected})

    @property
    def system_fingerprint(self) -> str:
        """``detinfer-0.1.0-portable-1-`` and 12 hex digits of SHA-256 over the parts."""
        text = json.dumps(dict(self.parts), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"detinfer-{__version__}-{self.parts['contract']}-{digest[:12]}"


def file_parts(files: ModelFiles, tokenizer: Any = None) -> dict[str, str]:
    """Return a model's parts: its files, and its tokenizer as loaded (from them if None)."""
    return {
        "weights": weights_digest(files),
        "weight_format": files.weight_format,
        "tokenizer": tokenizer_digest(load_tokenizer(files) if tokenizer is None else tokenizer),
        "config": config_digest(files),
    }


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"  # what it does is refused: answers bound to a grammar


def make_fingerprint(
    files: ModelFiles | Mapping[str, str],
    *,
    dtype: str,
    rope: str,
    length: int,
    contract: str = PORTABLE_CONTRACT,
    **native: str,
) -> Fingerprint:
    """Return the fingerprint of a model.

    Args:
        files: the model, or its ``file_parts``.
        dtype: of activations, ``"float32"`` and so on; of the KV cache too, where it is another
            than ``auto`` would make it.
        rope: how the frequencies were pinned, as the loader of the model puts it.
        length: tokens of prompt and answer together, for a request without ``max_tokens``.
        contract: profile and version of the arithmetic contract.
        **native: ``NATIVE_PARTS``, for that profile.
    """
    parts = file_parts(files) if isinstance(files, ModelFiles) else files
    return Fingerprint(
        {
            **parts,
            "contract": contract,
            "profile": contract.rsplit("-", 1)[0],
            "dtype": dtype,
            "rope": rope,
            "sampler": SAMPLER_VERSION,
            "length": str(length),
            **{name: _release(name) for name in PACKAGES},
            **native,
        }
    )
