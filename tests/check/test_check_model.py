"""The check on real models: kernels, pages and sampler together."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from detinfer import cli
from detinfer.check import Check, EngineSubject, Target
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a random Llama of two layers and a tokenizer of one word."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("plan", ["modules", "fused"])
def test_a_tiny_model_is_reproducible(tiny_model, plan):
    config = EngineConfig(model=str(tiny_model), plan=plan, threads=1, kv_cache_memory=8 << 20)
    params = SamplingParams(max_tokens=10)
    targets = [
        Target(tuple(range(3, 123)), params),
        Target((5,), SamplingParams(max_tokens=10, temperature=0.9, top_p=0.9, seed=1)),
    ]
    result = Check(EngineSubject(Engine(config)), targets, runs=40, seed=2).run()
    assert result.reproducible, result.first_divergence
    assert result.runs == 80
    assert all(prompt.expected.token_ids for prompt in result.prompts)


@pytest.mark.slow
def test_the_default_model_is_reproducible_and_fast_mode_is_not(tmp_path):
    path = tmp_path / "r.json"
    # One thread: two that share busy cores wait for each other most of the time.
    command = ["check", "--runs", "20", "--mode", "both", "--threads", "1", "--report", str(path)]
    assert cli.main(command) == 0
    report = json.loads(path.read_text())
    assert (report["runs"], report["unique_digests"], report["unique_outputs"]) == (143, 1, 1)
    assert report["by_mode"]["fast"]["unique_digests"] > 1
    prompts = {one["name"]: one for one in report["by_mode"]["deterministic"]["prompts"]}
    ends = {name: one["expected"]["finish_reason"] for name, one in prompts.items()}
    assert ends.pop("stop string") == "stop"
    assert set(ends.values()) == {"length"}
