"""config.json's fields, judged before a model is built of them: each fault names its field.

transformers checks types of most fields; values that cannot be, and settings that only fail
somewhere inside, are found here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detinfer.errors import ModelLoadError, UnsupportedModelError

_MOST = 2**31 - 1
_MOST_LAYERS = 10_000  # transformers makes a list of them before it looks at a weight
LEAST_POSITIONS = 8  # the audit's prompt must fit
_DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "auto")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_COUNTS = ("num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size", "head_dim")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# Of rope_parameters: numbers above zero; null is the formula's own default.
_ROPE_NUMBERS = (
    *("rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow", "mscale"),
    *("mscale_all_dim", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    "original_max_position_embeddings",
)


def check_raw(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what must be seen before transformers reads the file.

    Args:
        path: of config.json, for messages.
        config: its contents.

    Raises:
        ModelLoadError: naming the field.
        UnsupportedModelError: packed weights.
    """
    packed = config.get("quantization_config")
    if isinstance(packed, dict) and (method := packed.get("quant_method")):
        raise UnsupportedModelError(f"{path}: weights packed by {method} are not supported")
    if packed is not None:
        raise UnsupportedModelError(
            f"{path}: quantization_config: got {_short(packed)}, which names no quant_method: "
            "remove it if the weights are not packed"
        )
    texts = (one for one in config.values() if isinstance(one, dict))  # text_config and its kind
    for part in (config, *texts):
        for name in _LAYERS:
            if name in part and not _whole(part[name], 1, _MOST_LAYERS):
                raise _wrong(path, name, part[name], f"an integer, 1 to {_MOST_LAYERS}")
        for name in _HEADS:
            if isinstance(part.get(name), int) and not _whole(part[name], 1, _MOST):
                raise _wrong(path, name, part[name], f"an integer, 1 to {_MOST}")
        for name in ("rope_parameters", "rope_scaling"):
            if part.get(name) is not None:
                _check_rope_numbers(path, name, part[name])
    for name in ("dtype", "torch_dtype"):
        value = config.get(name)
        if isinstance(value, str) and value.removeprefix("torch.") not in _DTYPES:
            raise _wrong(path, name, value, f"one of {', '.join(_DTYPES)}")


def check_config(path: Path, config: Any) -> None:
    """Check what transformers made of the file, field by field.

    Args:
        path: of config.json, for messages.
        config: the model's text configuration.

    Raises:
        ModelLoadError: naming the field.
        UnsupportedModelError: a kind of rotary embedding that is not known.
    """
    from transformers.activations import ACT2FN

    given = config.to_dict()
    names = getattr(config, "attribute_map", {})

    def fields(*known: str) -> Iterator[tuple[str, Any]]:
        for name in (names.get(one, one) for one in known):
            if given.get(name) is not None:
                yield name, given[name]

    for name, value in fields(*_COUNTS):
        if not isinstance(value, list | tuple | dict) and not _whole(value, 1, _MOST):
            raise _wrong(path, name, value, f"an integer, 1 to {_MOST}")
    for name, value in fields("max_position_embeddings"):
        if not _whole(value, LEAST_POSITIONS, _MOST):
            raise _wrong(path, name, value, f"an integer, {LEAST_POSITIONS} to {_MOST}")
    for name, value in fields(*_EPSILONS):
        if not _number(value) or value < 0:
            raise _wrong(path, name, value, "a number, 0 or more")
    for name, value in fields(*_ACTIVATIONS):
        if not isinstance(value, str) or value not in ACT2FN:
            raise _wrong(path, name, value, "the name of an activation, such as silu")
    heads = dict(fields("num_attention_heads", "num_key_value_heads"))
    if len(heads) == 2 and all(isinstance(count, int) for count in heads.values()):
        (name, count), (kv_name, kv_count) = heads.items()
        if count % kv_count:
            raise _wrong(path, kv_name, kv_count, f"a divisor of the {count} {name}")
    rope = given.get("rope_parameters") or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    for part in nested or [rope]:
        _check_rope(path, part)


def _check_rope(path: Path, rope: Mapping[str, Any]) -> None:
    from detinfer.models.rope_frequencies import ROPE_TYPES

    kind = rope.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        known = ", ".join(sorted(ROPE_TYPES))
        raise UnsupportedModelError(
            f"{path}: rope_parameters.rope_type: got {_short(kind)}, expected one of {known}"
        )
    _check_rope_numbers(path, "rope_parameters", rope)


def _check_rope_numbers(path: Path, where: str, rope: object) -> None:
    """Of one entry, or of one for each kind of layer."""
    if not isinstance(rope, Mapping):
        raise _wrong(path, where, rope, "an object")
    for part in rope.values():
        if isinstance(part, dict):
            _check_rope_numbers(path, where, part)
    for name in _ROPE_NUMBERS:
        value = rope.get(name)
        zero = name.startswith("mscale") and value == 0  # as good as none
        if value is not None and not zero and not (_number(value) and value > 0):
            raise _wrong(path, f"{where}.{name}", value, "a number above 0")
    for name in ("long_factor", "short_factor"):
        values = rope.get(name)
        if values is not None and not (
            isinstance(values, list) and all(_number(one) and one > 0 for one in values)
        ):
            raise _wrong(path, f"{where}.{name}", values, "a list of numbers above 0")


def _wrong(path: Path, name: str, value: object, expected: str) -> ModelLoadError:
    return ModelLoadError(f"{path}: {name}: got {_short(value)}, expected {expected}")


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: object) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
