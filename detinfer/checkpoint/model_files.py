"""A model's files on this machine, and what names their contents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from detinfer.checkpoint.files import cached_sha256
from detinfer.checkpoint.folder import read_json
from detinfer.checkpoint.stamps import Stamps

# Fields of config.json that cannot change a logit; any other, known or not, counts.
_IDLE_FIELDS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine, ready for ``from_pretrained`` with ``use_safetensors=True``.

    Attributes:
        folder: holds config.json, the weights and the tokenizer.
        name: what to call the model: the hub id, or the folder's or file's name.
        weights: the safetensors files, in order of name.
        weight_format: how weights are stored, and from what: ``"bfloat16"``,
            ``"bfloat16 from gguf Q4_1+Q8_0"``, ``"packed Q4_1+Q8_0, bfloat16 from gguf F32"``.
        stamps: of the folder's files, taken before any was read.
    """

    folder: Path
    name: str
    weights: tuple[Path, ...]
    weight_format: str
    stamps: Stamps = field(default_factory=dict, compare=False)


def weights_digest(files: ModelFiles) -> str:
    """SHA-256, in hex, over names and contents of the weight files.

    Files are read once; after that their size and times tell whether they have changed.
    """
    return hash_json([[path.name, cached_sha256(path)] for path in files.weights])


def config_digest(files: ModelFiles) -> str:
    """SHA-256, in hex, over the configuration's fields that logits or stopping depend on."""
    config = read_json(files.folder / "config.json")
    generation: dict[str, object] = {}
    if (files.folder / "generation_config.json").is_file():
        generation = read_json(files.folder / "generation_config.json")
    fields = {key: value for key, value in config.items() if key not in _IDLE_FIELDS}
    return hash_json([fields, generation.get("eos_token_id")])


def hash_json(value: object) -> str:
    """SHA-256, in hex, of what JSON makes of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
