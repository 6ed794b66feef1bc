"""GGUF metadata as a Hugging Face config; every key is read or refused."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from detinfer.errors import ModelLoadError, UnsupportedModelError

# A file's architecture, and transformers' name and class of it; llama's with experts are another.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
_MIXTRAL = ("mixtral", "MixtralForCausalLM")

# Said about the file or its making; no bit of an answer depends on these.
_NEUTRAL_PREFIXES = (
    "GGUF.",
    "general.",
    "quantize.",
    "tokenizer.chat_template.",  # named templates beside the main one
    "tokenizer.chat_templates",
)


class Metadata:
    """A file's key-value pairs, and which of them were read.

    Attributes:
        path: the file, for messages.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._values = values
        self._unread = {key for key in values if not key.startswith(_NEUTRAL_PREFIXES)}

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return the value of ``key`` as ``kind``, or ``default``."""
        if key not in self._values:
            return default
        self._unread.discard(key)
        value = self._values[key]
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (kind in (int, float) and isinstance(value, bool)):
            raise ModelLoadError(
                f"{self.path}: metadata {key}: got {_shorten(value)}, expected {kind.__name__}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """Return the value of ``key``, which must be there."""
        value = self.get(key, kind)
        if value is None:
            raise ModelLoadError(f"{self.path}: metadata {key} is missing")
        return value

    def refuse_unread(self) -> None:
        """Raise if a key was not read: its meaning is not built, and may change every answer."""
        for key in sorted(self._unread):
            raise UnsupportedModelError(
                f"{self.path}: metadata {key} = {_shorten(self._values[key])} is not supported"
            )


def read_config(metadata: Metadata, tensors: AbstractSet[str]) -> dict[str, Any]:
    """Return the fields of config.json, without ``dtype``.

    Args:
        metadata: the file's key-value pairs.
        tensors: names of the file's tensors.

    Raises:
        UnsupportedModelError: an architecture or setting not known here.
        ModelLoadError: a key missing or of the wrong type.
    """
    path = metadata.path
    if metadata.get("split.count", int, 1) > 1:
        raise UnsupportedModelError(
            f"{path}: one part of a split GGUF; merge the parts with llama-gguf-split --merge"
        )
    metadata.get("split.no", int)
    metadata.get("split.tensors.count", int)
    name = metadata.need("general.architecture", str)
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path}: architecture {name!r} cannot be taken from a GGUF file yet, only "
            f"{', '.join(ARCHITECTURES)}; use the model's safetensors folder"
        )

    def need(key: str, kind: type = int) -> Any:
        return metadata.need(f"{name}.{key}", kind)

    def get(key: str, default: Any, kind: type = int) -> Any:
        return metadata.get(f"{name}.{key}", kind, default)

    def count(key: str, default: int | None = None) -> int:
        value: int = need(key) if default is None else get(key, default)
        if not 1 <= value < 2**31:
            raise ModelLoadError(
                f"{path}: metadata {name}.{key}: got {value}, expected 1 to {2**31 - 1}"
            )
        return value

    hidden, heads = count("embedding_length"), count("attention.head_count")
    kv_heads = count("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise ModelLoadError(
            f"{path}: metadata {name}.attention.head_count_kv: got {kv_heads}, expected a divisor "
            f"of the {heads} heads"
        )
    if hidden % heads and get("attention.key_length", None) is None:
        raise ModelLoadError(
            f"{path}: metadata {name}.attention.head_count: got {heads}, expected a divisor of "
            f"embedding_length {hidden}"
        )
    head_dim = count("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{path}: metadata {name}.{key} differs from the head's size {head_dim}"
            )
    layout = get("tensor_data_layout", "Meta AI original pth", str)
    if layout != "Meta AI original pth":
        raise UnsupportedModelError(f"{path}: metadata {name}.tensor_data_layout = {layout!r}")
    tokens = len(metadata.need("tokenizer.ggml.tokens", list))
    model_type, model_class = ARCHITECTURES[name]
    if name == "llama" and get("expert_count", 0):
        model_type, model_class = _MIXTRAL
    config = {
        "architectures": [model_class],
        "model_type": model_type,
        "vocab_size": count("vocab_size", tokens),
        "hidden_size": hidden,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": _layers(metadata, count("block_count"), tensors),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": count("context_length"),
        "rms_norm_eps": _above_zero(metadata, f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(metadata, name),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if model_type not in ("llama", "qwen2", "qwen3"):
        config |= _experts(path, name, count, model_type)
    return config


def _experts(path: Path, name: str, count: Callable[[str], int], model_type: str) -> dict[str, Any]:
    """Fields of a mixture of experts. llama.cpp's own code says whether weights are normalised."""
    experts, used = count("expert_count"), count("expert_used_count")
    if used > experts:
        raise ModelLoadError(
            f"{path}: metadata {name}.expert_used_count: got {used}, expected 1 to the {experts} "
            "experts"
        )
    if model_type == "mixtral":
        return {"num_local_experts": experts, "num_experts_per_tok": used}
    fields = {
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": count("expert_feed_forward_length"),
        "norm_topk_prob": model_type == "qwen3_moe",
    }
    if model_type == "qwen2_moe":
        fields["shared_expert_intermediate_size"] = count("expert_shared_feed_forward_length")
    return fields


def _layers(metadata: Metadata, layers: int, tensors: AbstractSet[str]) -> int:
    """``block_count``, which must not be more than there are: a model of so many would be built."""
    stored = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    if layers > len(stored):
        raise ModelLoadError(
            f"{metadata.path}: metadata block_count: got {layers}, but the file has the tensors of "
            f"{len(stored)} layers"
        )
    return layers


def _above_zero(metadata: Metadata, key: str, default: float | None = None) -> float:
    value = metadata.need(key, float) if default is None else metadata.get(key, float, default)
    if not 0 < value < float("inf"):
        raise ModelLoadError(f"{metadata.path}: metadata {key}: got {value}, expected above 0")
    return _decimal(value)


def _rope(metadata: Metadata, name: str) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _above_zero(metadata, f"{name}.rope.freq_base", 10000.0),
    }
    scaling = metadata.get(f"{name}.rope.scaling.type", str, "none")
    if scaling == "linear":
        factor = _above_zero(metadata, f"{name}.rope.scaling.factor")
        rope |= {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise UnsupportedModelError(
            f"{metadata.path}: RoPE scaling {scaling!r} cannot be taken from a GGUF file yet"
        )
    return rope


def _decimal(value: float) -> float:
    """Return the shortest decimal of the same float32: 1e-05 for the file's 9.999999747e-06."""
    return float(str(np.float32(value)))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
