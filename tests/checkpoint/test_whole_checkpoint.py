"""A checkpoint is whole: no parameter is made up, no tensor of the file is left over."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from folders import Tensors, edit_tensors, load, write_folder
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES

from detinfer.checkpoint.loader import resolve_model
from detinfer.errors import ModelLoadError
from detinfer.runner.loading import load_model

LAYER = "model.layers.0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole ones, to be copied: of the Llama kind, with a tensor for each expert, and others."""
    base = tmp_path_factory.mktemp("whole")
    return {
        "llama": write_folder(base / "llama"),
        "tied": write_folder(base / "tied", tie_word_embeddings=True),
        "experts": write_folder(base / "experts", "qwen3_moe"),
        "masks": write_folder(base / "masks", "gpt2"),
        "mixtral": write_folder(base / "mixtral", "mixtral"),
    }


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return Path(shutil.copytree(folders[getattr(request, "param", "llama")], tmp_path / "copy"))


def refuse(folder: Path, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def without(*patterns: str):
    def change(tensors: Tensors) -> Tensors:
        kept = {n: t for n, t in tensors.items() if not any(re.search(p, n) for p in patterns)}
        assert len(kept) < len(tensors)
        return kept

    return change


def prefixed(tensors: Tensors) -> Tensors:
    return {f"student.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["llama", "tied", "experts", "masks", "mixtral"])
def test_a_whole_one_loads(folders: dict[str, Path], name: str) -> None:
    load(folders[name])


@pytest.mark.parametrize(
    ("copy", "change", "words"),
    [
        ("llama", without(r"0\.mlp\.up_proj"), r"tensor model\.layers\.0\.mlp\.up_proj\.weight is"),
        ("llama", without(r"1\.input_layernorm"), r"1\.input_layernorm\.weight is missing"),
        ("llama", without(r"^model\.norm"), r"tensor model\.norm\.weight is missing"),
        ("llama", without(r"q_proj\.bias"), r"q_proj\.bias \(and 1 more\) is missing"),
        ("llama", without(r"layers\.1\."), r"model\.layers\.1\.\S+ \(and 12 more\) is missing"),
        ("llama", without("lm_head"), r"tensor lm_head\.weight is missing"),
        ("llama", without("embed_tokens"), r"tensor model\.embed_tokens\.weight is missing"),
        ("tied", without("embed_tokens"), r"model\.embed_tokens\.weight is missing"),
        ("llama", prefixed, r"is missing; tensor student\.\S+ \(and \d+ more\) has no place in a"),
        ("experts", without(r"experts\.2\.gate_proj"), r"experts\.2\.gate_proj\.weight is missing"),
        ("experts", without(r"experts\.4\."), r"experts.* has shape \[4, .* says \[5, "),
        ("experts", without(r"experts\.2\."), r"experts\.2\.\S+_proj\.weight is missing"),
        ("experts", without(r"0\.mlp\.experts\."), r"0\.mlp\.experts\.\S+ \(and 1 more\) is"),
        ("experts", without(r"mlp\.gate\."), r"mlp\.gate\.weight \(and 1 more\) is missing"),
    ],
    indirect=["copy"],
)  # fmt: skip
def test_what_is_missing_is_named(copy: Path, change, words: str) -> None:
    edit_tensors(copy, change)
    refuse(copy, words)


def one_more(name: str, *shape: int):
    return lambda tensors: tensors.update({name: torch.ones(shape)})


def same_again(name: str, source: str):
    return lambda tensors: tensors.update({name: tensors[source] + 1})


@pytest.mark.parametrize(
    ("copy", "change", "words"),
    [
        ("llama", one_more("model.layers.2.mlp.up_proj.weight", 9, 48), "layers.2.mlp.* no place"),
        ("llama", one_more("model.layers.0.self_attn.q_norm.weight", 8), "q_norm.weight has no pl"),
        ("llama", one_more("lm_head.bias", 131), "lm_head.bias has no place in a LlamaForCaus"),
        ("llama", one_more("x", 1), "tensor x has no place"),
        ("llama", same_again("norm.weight", "model.norm.weight"), "norm.weight is there twice"),
        ("experts", one_more("model.layers.0.mlp.experts.7.up_proj.weight", 36, 72), "experts.5"),
        ("experts", one_more("model.layers.0.mlp.experts.3.x.weight", 1), "experts.0.x.weight is"),
        # transformers knows the router by both names, and would take the first.
        ("mixtral", same_again(f"{LAYER}.mlp.gate.weight", f"{LAYER}.block_sparse_moe.gate.weight"),
         "the model takes .* under two names"),
    ],
    indirect=["copy"],
)  # fmt: skip
def test_what_has_no_place_is_named(copy: Path, change, words: str) -> None:
    edit_tensors(copy, change)
    refuse(copy, words)


@pytest.mark.parametrize(
    ("copy", "change"),
    [
        ("llama", one_more("model.layers.0.self_attn.rotary_emb.inv_freq", 4)),
        ("masks", one_more("transformer.h.0.attn.bias", 1, 1, 256, 256)),
        ("masks", one_more("transformer.h.0.attn.masked_bias")),
        ("tied", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})),
        ("tied", lambda t: {"lm_head.weight" if "embed" in n else n: t[n] for n in t}),
        # As the model without its head is saved.
        ("tied", lambda t: {n.removeprefix("model."): t[n] for n in t}),
    ],
    indirect=["copy"],
)  # fmt: skip
def test_what_is_idle_or_tied_may_be_there(
    folders: dict[str, Path], copy: Path, change, request: pytest.FixtureRequest
) -> None:
    edit_tensors(copy, change)
    original = folders[request.node.callspec.params["copy"]]
    expected = load_model(resolve_model(str(original))).state_dict()
    found = load_model(resolve_model(str(copy))).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_shape_that_differs_is_named(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({"model.norm.weight": torch.ones(47)}))
    refuse(copy, r"tensor model\.norm\.weight has shape \[47\], config\.json says \[48\]")


def sharded(copy: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    """The folder's weights in two files, and their index, not written yet."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    placed = {n: f"part-{'norm' in n}.safetensors" for n in tensors}
    for file in set(placed.values()):
        save_file({n: tensors[n] for n in tensors if placed[n] == file}, copy / file)
    return copy / "model.safetensors.index.json", {"weight_map": placed}


def test_an_index_need_not_be_right_about_what_its_files_hold(copy: Path) -> None:
    path, index = sharded(copy)
    path.write_text(json.dumps(index))
    load(copy)
    # An entry lost with the file it alone names: those tensors are gone.
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if "norm" not in n}
    path.write_text(json.dumps(index))
    refuse(copy, r"layernorm\.weight \(and 4 more\) is missing")


def test_one_tensor_in_two_files_is_refused(copy: Path) -> None:
    path, index = sharded(copy)
    path.write_text(json.dumps(index))
    shard = copy / "part-True.safetensors"
    save_file(load_file(shard) | {"lm_head.weight": torch.ones(131, 48)}, shard)
    refuse(copy, r"tensor lm_head\.weight is in part-False\.safetensors too")


@pytest.mark.parametrize("name", ["transformers_weights", "_name_or_path"])
def test_no_setting_names_other_weights(copy: Path, name: str) -> None:
    """What is hashed is what is loaded."""
    other = load_file(copy / "model.safetensors")
    save_file({n: t + 1 for n, t in other.items()}, copy / "other.safetensors")
    config = json.loads((copy / "config.json").read_text()) | {name: "other.safetensors"}
    (copy / "config.json").write_text(json.dumps(config))
    head = load_model(resolve_model(str(copy))).lm_head.weight
    assert torch.equal(head, other["lm_head.weight"])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_loads_as_it_was_saved(tmp_path: Path, architecture: str) -> None:
    write_folder(tmp_path, architecture)
    files = resolve_model(str(tmp_path))
    model = load_model(files)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    ours = model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
