"""What a model folder must hold, looked at without loading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detinfer.errors import ModelLoadError, UnsupportedModelError
from detinfer.models.weight_file import read_header

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_INTEGERS = {"BOOL", "U8", "I8", "I16", "I32", "I64"}  # masks and counters, never weights
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, once it is sure that transformers can load it without code from the model.

    Raises:
        ModelLoadError: it is missing or is no model's configuration.
        UnsupportedModelError: an architecture that transformers does not have, or packed weights.
    """
    config = peek_config(folder)

    from transformers import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        own_code = " without running the model's own code" if "auto_map" in config else ""
        raise UnsupportedModelError(
            f"{folder / 'config.json'}: transformers does not know model_type "
            f"{config['model_type']!r}{own_code}"
        )
    return config


def peek_config(folder: Path) -> dict[str, Any]:
    """config.json, as far as it can be judged without transformers, which is slow to import.

    Raises:
        ModelLoadError: it is missing or is no model's configuration.
        UnsupportedModelError: packed weights.
    """
    path = folder / "config.json"
    if not path.is_file():
        hint = ""
        if ggufs := sorted(folder.glob("*.gguf")):
            hint = f"; to load a GGUF file name it: {ggufs[0]}"
        raise ModelLoadError(f"{folder}: has no config.json, so it is not a model folder{hint}")
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{path}: has no model_type")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UnsupportedModelError(
            f"{path}: weights packed by {method or 'quantization_config'} are not supported"
        )
    return config


def find_weights(folder: Path) -> tuple[tuple[Path, ...], str]:
    """The safetensors files transformers will load, each whole; and their storage format.

    Returns:
        the files in order of name, and the format: ``"bfloat16"``, ``"bfloat16+float32"`` …

    Raises:
        ModelLoadError: there are none, or one is missing, cut short or damaged.
        UnsupportedModelError: weights of a dtype other than float32, bfloat16, float16.
    """
    if (folder / _ONE_FILE).is_file():
        placed = dict.fromkeys(read_header(folder / _ONE_FILE), _ONE_FILE)
    elif (folder / _INDEX).is_file():
        placed = _read_index(folder)
    else:
        raise ModelLoadError(f"{folder}: {_explain_absence(folder)}")
    files = tuple(folder / name for name in sorted(set(placed.values())))
    if not files:
        raise ModelLoadError(f"{folder}: its weights hold no tensors")
    dtypes = set()
    for path in files:
        header = read_header(path)
        if missing := [
            name for name, file in placed.items() if file == path.name and name not in header
        ]:
            raise ModelLoadError(
                f"weights file {path}: {_INDEX} puts {missing[0]} here, but it is not"
            )
        dtypes |= {info.dtype for info in header.values()}
    if strange := sorted(dtypes - _FLOATS.keys() - _INTEGERS):
        raise UnsupportedModelError(
            f"{folder}: weights of dtype {strange[0]}; supported are {', '.join(_FLOATS.values())}"
        )
    return files, "+".join(sorted(_FLOATS[dtype] for dtype in dtypes & _FLOATS.keys()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ModelLoadError: it cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / _INDEX
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict):
        raise ModelLoadError(f"{path}: has no weight_map")
    for file in placed.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelLoadError(f"{path}: got {file!r}, expected the name of a file beside it")
        if not (folder / file).is_file():
            raise ModelLoadError(f"weights file {folder / file}: named by {_INDEX}, but missing")
    return placed


def _explain_absence(folder: Path) -> str:
    for pattern in _PICKLES:
        if pickles := sorted(folder.glob(pattern)):
            return (
                f"only pickled weights ({pickles[0].name}), which can run code when read; convert "
                "them to safetensors"
            )
    return f"has no {_ONE_FILE} and no {_INDEX}"
