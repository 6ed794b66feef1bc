"""What bounds an answer whose request does not is in the fingerprint, whatever the pool."""

from __future__ import annotations

import pytest
from gguf_samples import write_gguf

from detinfer import LLM, SamplingParams

POOL = 1 << 20
# The model's length is 128 tokens; a page of 64 takes 32 KiB.
SETTINGS = [
    {},
    {"kv_cache_memory": POOL},
    {"kv_cache_memory": 2 * POOL, "max_num_seqs": 3},
    {"max_model_len": 100},
    {"max_model_len": 100, "kv_cache_memory": POOL},
    {"max_model_len": 37},
]
PROMPTS = [[5, 6, 7], [9] * 30]
OPEN = SamplingParams(max_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Under each of the settings: the fingerprint's parts, digests and lengths."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DETINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
    path = write_gguf(tmp_path_factory.mktemp("model") / "m.gguf")
    found = []
    for settings in SETTINGS:
        llm = LLM(str(path), threads=1, **settings)
        done = llm.generate(PROMPTS, OPEN)
        parts = llm.engine.info.fingerprint
        found.append((parts, [(one.digest, len(one.token_ids)) for one in done]))
    patch.undo()
    return found


def grouped(answers, *leave_out):
    groups = {}
    for parts, done in answers:
        key = tuple(value for name, value in parts.items() if name not in leave_out)
        groups.setdefault(key, set()).add(tuple(done))
    return groups


def test_equal_fingerprints_give_equal_answers_without_max_tokens(answers):
    groups = grouped(answers)
    assert all(len(done) == 1 for done in groups.values())
    assert len(groups) == 3
    for parts, done in answers:
        assert [size for _, size in done] == [int(parts["length"]) - len(p) for p in PROMPTS]


def test_without_the_bound_they_would_not(answers):
    """The negative control."""
    [done] = grouped(answers, "length").values()
    assert len(done) == 3
