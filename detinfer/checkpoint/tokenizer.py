"""What a tokenizer is: its part of the fingerprint, and what would make it something else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from detinfer.checkpoint.folder import read_json
from detinfer.errors import ModelLoadError, UnsupportedModelError

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "chat_template.json"),
)
# Settings of a model that draws its tokens: BPE's, and Unigram's two.
_RANDOM = ("dropout", "alpha", "nbest_size")
# Of the Python layer, what changes ids or text.
_SETTINGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "legacy",
    "split_special_tokens",
)


def settle(tokenizer: Any, folder: Path) -> None:
    """Make sure that a text has one list of tokens, all of them, whatever was asked before.

    A file's truncation and padding are for batches of training; they are switched off, as
    transformers does when it is first called.

    Raises:
        UnsupportedModelError: the tokenizer draws tokens.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for name in _RANDOM:
        value = getattr(backend.model, name, None)
        if value is not None and (value or name != "dropout"):
            raise UnsupportedModelError(
                f"{folder}: its tokenizer draws tokens at random: tokenizer.json: model.{name}: "
                f"got {value:.6g}, expected null"
            )


def explain_tokenizer(folder: Path) -> None:
    """Look for what may keep a folder's tokenizer from loading, in plain sight.

    Raises:
        ModelLoadError: naming the file.
    """
    for name in _FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    for path in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")):
        try:
            path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ModelLoadError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    if not (folder / "tokenizer.json").is_file():
        raise ModelLoadError(
            f"{folder}: has no tokenizer.json: take it from the model's repository, or save one "
            "with transformers' AutoTokenizer"
        )


def describe(tokenizer: Any) -> dict[str, Any]:
    """All that ids and text depend on, as JSON has it, once ``settle`` has seen it.

    Files do not count, only what was made of them: the backend with its vocabulary, merges, added
    tokens and every stage; the special tokens, which templates see too; the templates.
    """
    return {
        "class": type(tokenizer).__name__,
        "backend": json.loads(tokenizer.backend_tokenizer.to_str()),
        "special_tokens": {
            name: [str(token), tokenizer.convert_tokens_to_ids(str(token))]
            for name, token in tokenizer.special_tokens_map.items()
            if not isinstance(token, list)
        },
        "special_ids": sorted(tokenizer.all_special_ids),
        "chat_template": tokenizer.chat_template,
        **{name: getattr(tokenizer, name, None) for name in _SETTINGS},
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256, in hex, over all that ids and text depend on."""
    text = json.dumps(describe(tokenizer), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
