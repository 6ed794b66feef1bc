"""Model folders that cannot be right: one line that names the file and the field."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import load, write_folder

from detinfer.errors import DetinferError

Change = Callable[[Path], object]
CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
BOM = b"\xef\xbb\xbf"
LEGACY = {"rope_parameters": None}


def fields(file: str = CONFIG, **given: Any) -> Change:
    """Sets fields of a JSON file; ``...`` takes one away."""

    def change(folder: Path) -> None:
        value = json.loads((folder / file).read_text()) | given
        kept = {name: one for name, one in value.items() if one is not ...}
        (folder / file).write_text(json.dumps(kept))

    return change


def rope(kind: object, **given: Any) -> Change:
    return fields(rope_parameters={"rope_type": kind, "rope_theta": 1e4, **given})


def contents(file: str, data: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(data)


def first(file: str, data: bytes) -> Change:
    """Puts bytes at a file's beginning."""
    return lambda folder: (folder / file).write_bytes(data + (folder / file).read_bytes())


def half(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:60])


def without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def weights_named(name: str, *more: Change) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)
        for one in more:
            one(folder)

    return change


INTEGER = "expected an integer, 1 to"
LORA = "holds a LoRA adapter .*merge it into its base model"
MISTRAL = "consolidated.safetensors is in Mistral's own layout: take config.json and model"
ADAPTER = contents("adapter_config.json", b'{"base_model_name_or_path": "org/base"}')

CASES: dict[str, tuple[Change, str]] = {
    # config.json as a file
    "byte-order mark": (first(CONFIG, BOM), f"{CONFIG}: begins with a byte-order mark: save it as"),
    "UTF-16": (contents(CONFIG, '{"a": 1}'.encode("utf-16")), f"{CONFIG}: is not UTF-8 text"),
    "Latin-1": (contents(CONFIG, b'{"a": "\xe9"}'), f"{CONFIG}: is not UTF-8 text .byte 7."),
    "cut short": (half(CONFIG), f"{CONFIG}: not valid JSON"),
    "nested": (contents(CONFIG, b'{"a":' * 10**5), f"{CONFIG}: not valid JSON"),
    "a list": (contents(CONFIG, b"[]"), f"{CONFIG}: expected a JSON object, got list"),
    # values of the wrong type
    "text for a number": (fields(rms_norm_eps="1e-6"), "rms_norm_eps.* expected float, got str"),
    "null for a number": (fields(hidden_size=None), "hidden_size.* expected int, got NoneType"),
    "true for a number": (fields(rms_norm_eps=True), "rms_norm_eps.* expected float, got bool"),
    "list for a number": (fields(hidden_size=[48]), "hidden_size.* expected int, got list"),
    "text for a truth": (fields(tie_word_embeddings="no"), "tie_word_embeddings.* expected bool"),
    "no model_type": (fields(model_type=...), f"{CONFIG}: has no model_type"),
    "model_type a list": (fields(model_type=["llama"]), f"{CONFIG}: has no model_type"),
    "an encoder": (fields(model_type="clip"), "model_type 'clip' is not of a model that generates"),
    "dtype": (fields(dtype="floaty"), "dtype: got 'floaty', expected one of float32, "),
    # sizes
    "no layers": (fields(num_hidden_layers=0), f"num_hidden_layers: got 0, {INTEGER} 10000"),
    "-1 layers": (fields(num_hidden_layers=-1), f"num_hidden_layers: got -1, {INTEGER}"),
    "2.0 layers": (fields(num_hidden_layers=2.0), f"num_hidden_layers: got 2.0, {INTEGER}"),
    "true layers": (fields(num_hidden_layers=True), f"num_hidden_layers: got True, {INTEGER}"),
    "10^12 layers": (fields(num_hidden_layers=10**12), f"num_hidden_layers: got 10{'0' * 11}, "),
    "9999 layers": (fields(num_hidden_layers=9999), "num_hidden_layers: got 9999, but its files"),
    "no heads": (fields(num_attention_heads=0), f"num_attention_heads: got 0, {INTEGER}"),
    "5 heads": (fields(num_attention_heads=5), r"not a multiple of the number of attention heads"),
    "no kv heads": (fields(num_key_value_heads=0), f"num_key_value_heads: got 0, {INTEGER}"),
    "4 kv heads": (fields(num_key_value_heads=4), "got 4, expected a divisor of the 6 num_att"),
    "no width": (fields(hidden_size=0), f"hidden_size: got 0, {INTEGER}"),
    "2^62 wide": (fields(hidden_size=6 * 2**60), f"hidden_size: got 6\\d+, {INTEGER} 2147483647"),
    "no words": (fields(vocab_size=0), f"vocab_size: got 0, {INTEGER}"),
    "-3 words": (fields(vocab_size=-3), f"vocab_size: got -3, {INTEGER}"),
    "other vocabulary": (fields(vocab_size=50), r"has shape \[131, 48\], config.json says \[50, 4"),
    "head_dim": (fields(head_dim=0), f"head_dim: got 0, {INTEGER}"),
    "odd head_dim": (fields(head_dim=7), r"`head_dim`=7|config.json says .14."),
    "4 positions": (fields(max_position_embeddings=4), "got 4, expected an integer, 8 to"),
    "2^40 positions": (fields(max_position_embeddings=2**40), "max_position_embeddings: got 109"),
    "negative eps": (fields(rms_norm_eps=-1.0), "rms_norm_eps: got -1.0, expected a number, 0 or"),
    "NaN": (fields(rms_norm_eps=float("nan")), "rms_norm_eps: got nan, expected a number"),
    "infinity": (fields(initializer_range=float("inf")), "initializer_range: .* got inf"),
    "activation": (fields(hidden_act="swoosh"), "hidden_act: got 'swoosh', expected the name of"),
    "layer types": (fields(layer_types=["full_attention"]), "`num_hidden_layers` .2. must be equ"),
    # rotary embeddings
    "unknown rope_type": (rope("spiral"), "rope_parameters.rope_type: got 'spiral', expected one"),
    "rope_type 3": (rope(3), "rope_parameters.rope_type: got 3, expected one of default, "),
    "old spelling": (fields(rope_scaling={"type": "spiral"}, **LEGACY), "rope_type: got 'spiral'"),
    "old text": (fields(rope_scaling="linear", **LEGACY), "rope_scaling: got 'linear', expected a"),
    "no factor": (rope("linear"), "Missing required keys in `rope_parameters` .*'factor'"),
    "no factors": (rope("longrope"), "Missing required keys .*_factor"),
    "no llama3 factors": (rope("llama3", factor=8.0), "Missing required keys .*_freq_factor"),
    "no yarn factor": (rope("yarn"), "Missing required keys .*'factor'"),
    "factor 0": (rope("linear", factor=0), "rope_parameters.factor: got 0, expected a number abov"),
    "factor text": (rope("linear", factor="2"), "rope_parameters.factor: got '2', expected a numb"),
    "theta 0": (rope("default", rope_theta=0), "rope_parameters.rope_theta: got 0, expected a"),
    "theta -5": (rope("default", rope_theta=-5.0), "rope_parameters.rope_theta: got -5.0, expe"),
    "theta text": (rope("default", rope_theta="1e4"), "rope_parameters.rope_theta: got '1e4'"),
    "beta": (rope("yarn", factor=2.0, beta_fast="x"), "rope_parameters.beta_fast: got 'x', exp"),
    "too few factors": (
        rope("longrope", factor=2.0, long_factor=[1.0], short_factor=[1.0] * 4),
        "rope_parameters.long_factor: got 1 numbers, expected 4",
    ),
    "factors of text": (
        rope("longrope", factor=2.0, long_factor=["a"] * 4, short_factor=[1.0] * 4),
        r"rope_parameters.long_factor: got \['a', .*expected a list of numbers above 0",
    ),
    "theta below 1": (rope("default", rope_theta=1e-30), "rope_parameters .* cannot be followed"),
    "rope list": (fields(rope_parameters=[1]), r"rope_parameters: got \[1\], expected an object"),
    # packed weights, adapters, other layouts
    "quantised {}": (fields(quantization_config={}), "quantization_config: got {}, .*: remove it"),
    "quantised []": (fields(quantization_config=[]), r"quantization_config: got \[\], .*: remove"),
    "gptq": (fields(quantization_config={"quant_method": "gptq"}), "weights packed by gptq are"),
    "LoRA": (weights_named("adapter_model.safetensors", without(CONFIG), ADAPTER), LORA),
    "LoRA, config": (weights_named("adapter_model.safetensors", ADAPTER), LORA),
    "LoRA beside": (ADAPTER, LORA),
    "Mistral's": (weights_named("consolidated.safetensors"), f"no model.safetensors .*{MISTRAL}"),
    "Mistral's own": (
        weights_named("consolidated.safetensors", without(CONFIG)),
        f"has no config.json.*{MISTRAL}",
    ),
    "another name": (weights_named("weights.safetensors"), "json; only weights.safetensors"),
    # the tokenizer
    "no tokenizer.json": (without(TOKENIZER), "has no tokenizer.json: take it from the model's"),
    "broken tokenizer": (half(TOKENIZER), f"{TOKENIZER}: not valid JSON"),
    "tokenizer's mark": (first(TOKENIZER, BOM), f"{TOKENIZER}: begins with a byte-order mark"),
    "tokenizer a list": (contents(TOKENIZER, b"[]"), f"{TOKENIZER}: expected a JSON object"),
    "settings a list": (contents(SETTINGS, b"[]"), f"{SETTINGS}: expected a JSON object"),
    "settings' mark": (first(SETTINGS, BOM), f"{SETTINGS}: begins with a byte-order mark"),
    "template": (contents("chat_template.jinja", b"\xff{{"), "chat_template.jinja: is not UTF-8"),
    # generation_config.json
    "generation's mark": (first(GENERATION, BOM), f"{GENERATION}: begins with a byte-order mark"),
    "generation a list": (contents(GENERATION, b"[]"), f"{GENERATION}: expected a JSON object"),
    "end a text": (fields(GENERATION, eos_token_id="2"), f"{GENERATION}: eos_token_id: got '2', "),
    "end 2.0": (fields(GENERATION, eos_token_id=[2.0]), f"{GENERATION}: eos_token_id: got .2.0., "),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("whole") / "m")


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_cannot_be_right_is_one_line(whole: Path, tmp_path: Path, case: str) -> None:
    change, words = CASES[case]
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    change(folder)
    with pytest.raises(DetinferError, match=words) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    # Rotary tables know their module, not their file.
    assert str(folder) in message or message.startswith("model.rotary_emb ")


FINE: dict[str, Change] = {
    "nothing": lambda folder: None,
    "no generation_config.json": without(GENERATION),
    "quantization_config null": fields(quantization_config=None),
    "unknown fields": fields(pet="cat", rope_scaling=None, pretraining_tp=1),
    "integers for numbers": rope("linear", rope_theta=10000, factor=2),
    "mscale 0": rope("yarn", factor=2.0, mscale=0, mscale_all_dim=0),
}


@pytest.mark.parametrize("case", FINE)
def test_what_is_unusual_but_right_loads(whole: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    FINE[case](folder)
    load(folder)


@pytest.mark.parametrize(
    ("case", "command"),
    [
        ("byte-order mark", ("serve", "--port", "0")),
        ("LoRA", ("generate", "--prompt", "t5")),
        ("text for a number", ("generate", "--prompt", "t5")),
        ("other vocabulary", ("generate", "--prompt", "t5")),
    ],
)
def test_a_command_says_it_in_one_line(
    whole: Path, tmp_path: Path, case: str, command: tuple[str, ...]
) -> None:
    change, words = CASES[case]
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    change(folder)
    done = subprocess.run(
        [sys.executable, "-m", "detinfer.cli", *command, "--model", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"detinfer: error: [^\n]*{words}[^\n]*\n", done.stderr)
