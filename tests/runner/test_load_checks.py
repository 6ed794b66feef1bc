"""Every runner asks, at every load, whether it may promise anything: none of the calls can go."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_models import SMALL, Tokenizer
from tiny_models import tiny_config, tiny_model
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from detinfer.config import EngineConfig
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.runner import runner as runners
from detinfer.runner.loading import Source
from detinfer.runner.native import NativeRunner
from detinfer.runner.portable import ModelRunner

CHECKS = ("check_environment", "audit_model", "plans_agree", "make_fingerprint")


class Asked(Exception):
    """What a check under test says."""


def ask(*_: Any, **__: Any) -> None:
    raise Asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model(tiny_config("llama", hidden_size=48, num_attention_heads=6)).save_pretrained(path)
    words = WordTokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(path)
    return str(path)


def load_portable(folder: str) -> Any:
    config = EngineConfig(model=folder, threads=1, kv_cache_memory=1 << 20)
    return ModelRunner(config.resolve())


def load_native(_: str) -> Any:
    model = tiny_model(tiny_config("llama", **SMALL), torch.bfloat16)
    model.config._attn_implementation = ATTN_IMPLEMENTATION
    parts = dict.fromkeys(("weights", "weight_format", "tokenizer", "config"), "random")
    source = Source(model, Tokenizer(), "llama", torch.bfloat16, parts)
    config = EngineConfig(numerics="native", device="cpu", kv_cache_memory=1 << 20)
    return NativeRunner(config.resolve(), source)


RUNNERS = {ModelRunner: load_portable, NativeRunner: load_native}


def put_in(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Replaces a check by one that always complains."""
    monkeypatch.setattr(module, name, ask)


class _WithoutCall(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self.name, self.found = name, 0

    def visit_Call(self, node: ast.Call) -> ast.expr:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if (node.func.id if isinstance(node.func, ast.Name) else called) != self.name:
            self.generic_visit(node)
            return node
        self.found += 1
        return ast.copy_location(ast.Constant(True), node)


def without_call(module: Any, name: str) -> Any:
    """A copy of a module in which nobody asks: every call of a check says yes."""
    remover = _WithoutCall(name)
    tree = ast.fix_missing_locations(remover.visit(ast.parse(inspect.getsource(module))))
    assert remover.found == 1
    copy = types.ModuleType(module.__name__)
    copy.__file__ = module.__file__
    # Dataclasses look their module up by name, and find the original: the same names.
    exec(compile(tree, str(module.__file__), "exec"), copy.__dict__)
    return copy


@pytest.mark.parametrize("load", RUNNERS.values())
@pytest.mark.parametrize("name", CHECKS)
def test_a_load_asks(
    name: str, load: Callable[[str], Any], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(monkeypatch, runners, name)
    with pytest.raises(Asked):
        load(folder)


# The fingerprint is no check: without the call its attribute is wrong, which other tests see.
@pytest.mark.parametrize(
    ("name", "runner"),
    [(name, ModelRunner) for name in CHECKS[:-1]]
    + [pytest.param("audit_model", NativeRunner, marks=pytest.mark.slow)],
)
def test_a_deleted_call_is_found(
    name: str, runner: type, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = without_call(runners, name)
    put_in(monkeypatch, mutant, name)
    runner.__bases__ = (mutant.Runner,)
    try:
        assert RUNNERS[runner](folder).plan == "fused"  # nobody asked
    finally:
        runner.__bases__ = (runners.Runner,)
