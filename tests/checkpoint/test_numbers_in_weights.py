"""Weights are numbers; -inf in the output layer's bias means "never", as in transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import edit_tensors, load, write_folder
from tiny_models import VOCAB, tokens
from transformers import AutoModelForCausalLM

from detinfer import LLM, SamplingParams
from detinfer.errors import ModelLoadError

ALIVE = (5, 17, 40, 77, 130)
LENGTH = 12
PROMPT = tokens(7, seed=3)


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.1.mlp.down_proj.weight", torch.float32),
        ("model.layers.0.self_attn.k_proj.bias", torch.bfloat16),
        ("model.embed_tokens.weight", torch.float16),
        ("lm_head.weight", torch.bfloat16),
        ("model.norm.weight", torch.float32),
    ],
)
def test_what_is_no_number_is_named(
    tmp_path: Path, name: str, dtype: torch.dtype, value: float
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = value
        tensors |= {one: tensor.to(dtype) for one, tensor in tensors.items()}

    edit_tensors(write_folder(tmp_path), spoil)
    found = "NaN" if math.isnan(value) else "infinity"
    with pytest.raises(ModelLoadError, match=f"tensor {name} holds {found}") as caught:
        load(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_never_has_no_meaning_elsewhere(tmp_path: Path, name: str) -> None:
    edit_tensors(write_folder(tmp_path), lambda t: t[name].view(-1)[3].fill_(-math.inf) and None)
    with pytest.raises(ModelLoadError, match=f"tensor {name} holds -infinity, which only the"):
        load(tmp_path)


def rule_out(tensors: dict[str, torch.Tensor]) -> None:
    keep = torch.zeros(VOCAB, dtype=torch.bool)
    keep[list(ALIVE)] = True
    tensors["lm_head.bias"][~keep] = -math.inf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer has a bias that rules out all tokens but five."""
    path = write_folder(tmp_path_factory.mktemp("phi"), "phi")
    edit_tensors(path, rule_out)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), threads=1, kv_cache_memory=4 << 20)


def answer(llm: LLM, **options: Any) -> Any:
    params = SamplingParams(max_tokens=LENGTH, ignore_eos=True, **options)
    [output] = llm.generate([PROMPT], params)
    assert output.finish_reason == "length", output.error
    return output


def test_answers_and_log_probabilities_are_transformers_own(folder: Path, llm: LLM) -> None:
    found = answer(llm, logprobs=20, prompt_logprobs=0)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = PROMPT + list(found.token_ids)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    after = expected[len(PROMPT) - 1 : -1]
    assert after.argmax(axis=-1).tolist() == list(found.token_ids)
    for one, row in zip(found.logprobs, after, strict=True):
        assert len(one.top) == 20
        ids, values = zip(*one.top, strict=True)
        assert set(ids[:5]) == set(ALIVE)
        np.testing.assert_allclose(values, row[list(ids)], rtol=1e-4)
        assert values[5:] == (-math.inf,) * 15
        assert ids[5:] == tuple(sorted(ids[5:]))
    prompt = [one.logprob for one in found.prompt_logprobs]
    np.testing.assert_allclose(prompt, expected[np.arange(len(PROMPT) - 1), PROMPT[1:]], rtol=1e-4)
    assert -math.inf in prompt


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 50.0, "top_k": 100},
        {"temperature": 5.0, "top_p": 1.0, "min_p": 1e-30},
        {"temperature": 5.0, "top_k": 6},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 5.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"frequency_penalty": -2.0, "presence_penalty": -2.0, "temperature": 1.0},
        {"logit_bias": {3: 100.0, 4: 100.0}},
        {"temperature": 1.0, "logit_bias": {5: -100.0}, "deterministic": False},
        {"deterministic": False},
    ],
)
def test_no_request_gets_a_token_that_is_ruled_out(llm: LLM, options: dict[str, Any]) -> None:
    for seed in range(4):
        given = {"seed": seed} if "temperature" in options else {}
        assert set(answer(llm, **options, **given).token_ids) <= set(ALIVE)


def test_a_request_whose_last_token_is_ruled_out_ends_alone(llm: LLM) -> None:
    """Five tokens are left, and a sixth request may not have them."""
    stop = SamplingParams(max_tokens=3, min_tokens=2, stop_token_ids=ALIVE, ignore_eos=True)
    good = SamplingParams(max_tokens=3, ignore_eos=True)
    bad, fine = llm.generate([PROMPT, PROMPT], [stop, good])
    assert bad.finish_reason == "error"
    assert "NaN or infinite" in bad.error
    assert fine.finish_reason == "length"
