"""GGUF vocabularies as Hugging Face tokenizer files.

``tokenizer.ggml.pre`` names how text is cut before byte-pair merges; a wrong cut gives other ids
for digits, spaces and code while looking right on prose. So a name not in the table is refused. The
expressions are those of the models' own tokenizer.json (and of llama.cpp's llama-vocab.cpp).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detinfer.checkpoint.gguf.config import Metadata
from detinfer.errors import ModelLoadError, UnsupportedModelError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's token types

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _sequence(first: dict[str, Any], **byte_level: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, _BYTES | byte_level]}


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence(cut, use_regex=False)


_PRE_TOKENIZERS = {
    "gpt-2": _BYTES,
    "smollm": _sequence({"type": "Digits", "individual_digits": True}),
    "llama-bpe": _split(LLAMA3_PATTERN),
    "qwen2": _split(QWEN2_PATTERN),
}
_NORMALIZERS = {"qwen2": {"type": "NFC"}}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word in the vocabulary is taken without merging
_BEGINS_WITH_BOS = {"llama-bpe"}  # where the file does not say

_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_END_OF_TURN = ("eos", "eot", "eom")
_ONLY_FOR_INFILLING = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")


def write_tokenizer(metadata: Metadata, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write tokenizer.json, tokenizer_config.json and the chat template to ``folder``.

    Args:
        metadata: the file's key-value pairs.
        config: fields of config.json.
        folder: where to write.

    Returns:
        The special tokens' ids, as generation_config.json (and config.json) name them; every
        end-of-turn id is among the end-of-sequence ids.

    Raises:
        UnsupportedModelError: a kind of tokenizer or pre-tokenizer not known here.
        ModelLoadError: a vocabulary that cannot be right.
    """
    pre = _pre_tokenizer_name(metadata)
    tokens, types = _vocabulary(metadata, config["vocab_size"])
    ids = _special_ids(metadata, len(tokens))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(index, tokens[index], special=kind == _CONTROL)
            for index, kind in enumerate(types)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": _NORMALIZERS.get(pre),
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": _frame(metadata, pre, tokens, ids),
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS_FIRST,
            "vocab": {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED},
            "merges": _merges(metadata, set(tokens)),
        },
    }
    settings = {
        # Not the family's own class: those put a pre-tokenizer of their own over the file's.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    } | {f"{_ROLES[role]}_token": tokens[ids[role]] for role in _ROLES if role in ids}
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", settings)
    template = metadata.get("tokenizer.chat_template", str)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return _generation_ids(ids)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` so that equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _pre_tokenizer_name(metadata: Metadata) -> str:
    kind = metadata.need("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise UnsupportedModelError(
            f"{metadata.path}: tokenizer {kind!r} cannot be taken from a GGUF file yet, only "
            "byte-level BPE ('gpt2'); use the model's safetensors folder"
        )
    pre: str | None = metadata.get("tokenizer.ggml.pre", str)
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{metadata.path}: pre-tokenizer tokenizer.ggml.pre = {pre!r} is not known, only "
            f"{', '.join(_PRE_TOKENIZERS)}; use the model's safetensors folder"
        )
    for key in ("add_space_prefix", "remove_extra_whitespaces"):
        if metadata.get(f"tokenizer.ggml.{key}", bool, False):
            raise UnsupportedModelError(
                f"{metadata.path}: metadata tokenizer.ggml.{key} = True is not supported"
            )
    return pre


def _vocabulary(metadata: Metadata, rows: int) -> tuple[list[str], list[int]]:
    tokens: list[str] = metadata.need("tokenizer.ggml.tokens", list)
    types: list[int] = metadata.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    metadata.get("tokenizer.ggml.scores", list)  # of no use: merges are ranked by their order
    if len(types) != len(tokens) or len(tokens) > rows or len(set(tokens)) != len(tokens):
        raise ModelLoadError(
            f"{metadata.path}: vocabulary of {len(tokens)} tokens ({len(set(tokens))} different) "
            f"and {len(types)} types for {rows} rows of embeddings"
        )
    if strange := set(types) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED}:
        raise UnsupportedModelError(
            f"{metadata.path}: token type {min(strange)} is not known for a byte-level vocabulary"
        )
    return tokens, types


def _merges(metadata: Metadata, vocabulary: set[str]) -> list[list[str]]:
    merges = [merge.split(" ") for merge in metadata.need("tokenizer.ggml.merges", list)]
    for pair in merges:
        if len(pair) != 2 or not vocabulary.issuperset((*pair, "".join(pair))):
            raise ModelLoadError(f"{metadata.path}: merge {pair} is not one of two known tokens")
    return merges


def _special_ids(metadata: Metadata, count: int) -> dict[str, int]:
    ids = {}
    for role in (*_ROLES, *_END_OF_TURN, *_ONLY_FOR_INFILLING):
        key = f"tokenizer.ggml.{role}_token_id"
        index = metadata.get(key, int)
        if index is None:
            continue
        if not 0 <= index < count:
            raise ModelLoadError(f"{metadata.path}: {key}: got {index}, expected 0..{count - 1}")
        ids[role] = index
    return ids


def _generation_ids(ids: dict[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "bos" in ids:
        found["bos_token_id"] = ids["bos"]
    if ends := sorted({ids[role] for role in _END_OF_TURN if role in ids}):
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if "padding" in ids:
        found["pad_token_id"] = ids["padding"]
    return found


def _added_token(index: int, text: str, special: bool) -> dict[str, Any]:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _frame(
    metadata: Metadata, pre: str, tokens: list[str], ids: dict[str, int]
) -> dict[str, Any] | None:
    """Return the post-processor that puts begin and end tokens around a text, if there are any."""
    before, after = [], []
    if metadata.get("tokenizer.ggml.add_bos_token", bool, pre in _BEGINS_WITH_BOS):
        before = [_role(metadata, ids, "bos")]
    if metadata.get("tokenizer.ggml.add_eos_token", bool, False):
        after = [_role(metadata, ids, "eos")]
    if not before and not after:
        return None

    def around(text: str, type_id: int) -> list[dict[str, Any]]:
        def token(index: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": tokens[index], "type_id": type_id}}

        whole = {"Sequence": {"id": text, "type_id": type_id}}
        return [*map(token, before), whole, *map(token, after)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}
            for index in before + after
        },
    }


def _role(metadata: Metadata, ids: dict[str, int], role: str) -> int:
    if role not in ids:
        raise ModelLoadError(f"{metadata.path}: metadata tokenizer.ggml.{role}_token_id is missing")
    return ids[role]
