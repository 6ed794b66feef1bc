"""A host process that rounds otherwise, or flushes subnormals, gets the bits everyone gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numba
import pytest
import torch
from control_words import FLUSHED, foreign_word
from tiny_models import tiny_config, tiny_model, tokens
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from detinfer import LLM, SamplingParams, ops
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.kernels.cpu.rounding import control_word
from detinfer.machine import usable_cores
from detinfer.testing import thread_count

RULES = ~0x3F  # without what MXCSR notes of past operations
PROMPT = tokens(240, 0)
PROMPTS = [PROMPT, PROMPT, tokens(60, 1), PROMPT]  # enough rows for PyTorch to share them out
GREEDY = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=3)
SAMPLED = SamplingParams(
    max_tokens=3, ignore_eos=True, logprobs=3, seed=5, temperature=0.7, top_p=0.9, min_p=0.01,
    repetition_penalty=1.3, frequency_penalty=0.1,
)  # fmt: skip

needs_workers = pytest.mark.skipif(usable_cores() < 2, reason="one core: there are no workers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint in float32 whose first layer attends over subnormal values."""
    path = tmp_path_factory.mktemp("tiny")
    model = tiny_model(tiny_config("llama", hidden_size=96, num_attention_heads=6))
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.v_proj.weight *= 1e-39
        attention.v_proj.bias *= 1e-39
        attention.o_proj.weight *= 1e38
    model.save_pretrained(path)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(path)
    return str(path)


def give_birth() -> None:
    """Let PyTorch's workers and Numba's begin in this thread, under its present word."""
    torch.set_num_threads(2)
    ones = torch.ones(1 << 20)
    assert (ones + ones).sum() == 1 << 21
    with thread_count(2):
        ops.softmax(torch.ones(64, 64))


def answers(
    config: EngineConfig, kind: str | None = None, since: str = "", tampered: Any = None
) -> Any:
    """All that is said of the answers, by a thread of its own with workers of its own.

    Args:
        kind: of the foreign word.
        since: when the thread has it; "birth": while the workers begin, and no longer.
        tampered: called with the engine before it runs.
    """
    results: list[Any] = []

    def work() -> None:
        with ExitStack() as word:
            if kind and since != "run":
                word.enter_context(foreign_word(kind))
            give_birth()
            if since == "birth":
                word.close()
            llm = LLM(engine=Engine(config))
            if kind and since == "run":
                word.enter_context(foreign_word(kind))
                give_birth()
            if tampered is not None:
                tampered(llm.engine)
            before = control_word(), torch.get_num_threads()
            got = [llm.generate(PROMPTS, params) for params in (GREEDY, SAMPLED)]
            after = control_word(), torch.get_num_threads()
            assert (after[0] & RULES, after[1]) == (before[0] & RULES, before[1])
        results.append([[(a.digest, a.token_ids, a.logprobs) for a in each] for each in got])

    _in_a_thread(work)
    assert results, "the thread raised"
    return results[0]


def _in_a_thread(work: Callable[[], None]) -> None:
    threads = numba.get_num_threads(), torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    numba.set_num_threads(threads[0])
    torch.set_num_threads(threads[1])


def settings(folder: str, plan: str, dtype: str = "auto") -> EngineConfig:
    return EngineConfig(
        model=folder, plan=plan, dtype=dtype, threads=min(2, usable_cores()),
        kv_cache_memory=16 << 20, prefix_caching=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(folder: str) -> Any:
    return {
        (plan, dtype): answers(settings(folder, plan, dtype))
        for plan, dtype in (("modules", "auto"), ("fused", "auto"), ("modules", "bfloat16"))
    }


def test_equal_prompts_have_one_digest_and_both_plans_agree(expected: Any) -> None:
    assert expected["modules", "auto"] == expected["fused", "auto"]
    for greedy, sampled in expected.values():
        assert greedy[0] == greedy[1] == greedy[3]
        assert sampled[0] == sampled[1] == sampled[3]


@pytest.mark.parametrize("since", ["birth", "load", "run"])
@pytest.mark.parametrize("kind", ["upward", FLUSHED])
@pytest.mark.parametrize("plan", ["modules", "fused"])
def test_a_foreign_word_moves_no_bit(
    folder: str, expected: Any, plan: str, kind: str, since: str
) -> None:
    assert answers(settings(folder, plan), kind, since) == expected[plan, "auto"]


def test_nor_while_weights_are_rounded_at_load(folder: str, expected: Any) -> None:
    config = settings(folder, "modules", "bfloat16")
    assert answers(config, "upward", "load") == expected["modules", "bfloat16"]


# Negative controls: what protects the calling thread, and what keeps PyTorch's workers out.


def test_without_the_steps_guard_bits_move(
    folder: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unguarded = Engine.step.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(LLM, "generate", LLM.generate.__wrapped__)  # type: ignore[attr-defined]
    monkeypatch.setattr(Engine, "step", unguarded)
    assert answers(settings(folder, "modules"), "upward", "run") != expected["modules", "auto"]


def test_bits_move_with_the_subnormals_of_this_model(folder: str, expected: Any) -> None:
    def flush(engine: Engine) -> None:
        values = engine.runner.model.model.layers[0].self_attn.v_proj  # type: ignore[attr-defined]
        values.leaf.packed.panels.zero_()
        values.bias.zero_()

    got = answers(settings(folder, "modules"), tampered=flush)
    assert got != expected["modules", "auto"]


@needs_workers
def test_with_pytorchs_workers_bits_move(
    folder: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_them(_: Engine) -> None:
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)

    got = answers(settings(folder, "modules"), "upward", "birth", let_them)
    assert got != expected["modules", "auto"]
