"""What a model folder must hold, looked at without loading a weight."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from detinfer.checkpoint.config_check import check_config, check_raw
from detinfer.checkpoint.weight_file import read_header
from detinfer.errors import ModelLoadError, UnsupportedModelError

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_INTEGERS = {"BOOL", "U8", "I8", "I16", "I32", "I64"}  # masks and counters, never weights
_MISTRALS_OWN = (
    "consolidated.safetensors is in Mistral's own layout: take config.json and model*.safetensors "
    "from the same repository"
)
_VALIDATION = re.compile(r"(?:Class v|V)alidation error for (?:field '(\w+)')?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, once it is sure that transformers can load it without code from the model.

    Raises:
        ModelLoadError: it is missing or is no model's configuration.
        UnsupportedModelError: an architecture that transformers does not have, or packed weights.
    """
    config = peek_config(folder)
    path = folder / "config.json"

    from transformers import CONFIG_MAPPING, AutoConfig

    quiet_transformers()
    if config["model_type"] not in CONFIG_MAPPING:
        own_code = " without running the model's own code" if "auto_map" in config else ""
        raise UnsupportedModelError(
            f"{path}: transformers does not know model_type {config['model_type']!r}{own_code}"
        )
    try:
        read = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # its validators and ours of other packages raise all kinds
        raise ModelLoadError(f"{path}: {one_line(error)}") from error
    check_config(path, read.get_text_config())
    return config


def quiet_transformers() -> None:
    """Keep its progress bars and warnings off stderr: what matters in them is refused here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def one_line(error: Exception) -> str:
    """Put what another package's exception says in a line; a validator's last line says all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if found := _VALIDATION.match(lines[0]):
        said = lines[-1].partition("Error: ")[2] or lines[-1]
        return said if not found[1] or found[1] in said else f"{found[1]}: {said}"
    return lines[0].strip('"') if isinstance(error, KeyError) else lines[0]


def peek_config(folder: Path) -> dict[str, Any]:
    """config.json, as far as it can be judged without transformers, which is slow to import.

    Raises:
        ModelLoadError: it is missing or is no model's configuration.
        UnsupportedModelError: packed weights.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{folder}: holds a LoRA adapter (adapter_config.json), which is not applied: merge it "
            "into its base model (PEFT's merge_and_unload), or take the file away"
        )
    if not path.is_file():
        hint = ""
        if ggufs := sorted(folder.glob("*.gguf")):
            hint = f"; to load a GGUF file name it: {ggufs[0]}"
        elif sorted(folder.glob("consolidated*.safetensors")):
            hint = f"; {_MISTRALS_OWN}"
        raise ModelLoadError(f"{folder}: has no config.json, so it is not a model folder{hint}")
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{path}: has no model_type")
    check_raw(path, config)
    return config


def find_weights(folder: Path) -> tuple[tuple[Path, ...], str]:
    """Return the safetensors files transformers will load, each whole; and their storage format.

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
    if strange := sorted(dtypes - FLOATS.keys() - _INTEGERS):
        raise UnsupportedModelError(
            f"{folder}: weights of dtype {strange[0]}; supported are {', '.join(FLOATS.values())}"
        )
    return files, "+".join(sorted(FLOATS[dtype] for dtype in dtypes & FLOATS.keys()))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file that holds an object.

    Raises:
        ModelLoadError: it cannot be read or holds something else.
    """
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            raise ModelLoadError(
                f"{path}: begins with a byte-order mark: save it as UTF-8 without one"
            )
        value = json.loads(text)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: is not UTF-8 text (byte {error.start})") from error
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
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        what = _MISTRALS_OWN if others[0].startswith("consolidated") else f"only {others[0]}"
        return f"has no {_ONE_FILE} and no {_INDEX}; {what}"
    return f"has no {_ONE_FILE} and no {_INDEX}"
