"""Engine.step: finish reasons, faults, bad requests, pages, scheduling order."""

import dataclasses
import logging
import math

import numpy as np
import pytest
from fake_runner import EOS, VOCAB, FakeRunner, fake_engine

from detinfer.config import EngineConfig
from detinfer.engine.request import NON_FINITE
from detinfer.errors import RequestError
from detinfer.kernels import reference_sampling
from detinfer.params import SamplingParams


class ScriptedRunner(FakeRunner):
    """Every request's k-th output is the k-th token of the script, whatever the history."""

    def __init__(self, script, prompt_tokens=1, **options):
        super().__init__(**options)
        self.script, self.prompt_tokens = script, prompt_tokens

    def logits_of(self, history, batch):
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[self.script[len(history) - self.prompt_tokens]] = 5
        return logits


def generate(params, runner=None, prompt=(1,)):
    engine = fake_engine(runner=runner)
    engine.add_request("x", list(prompt), params)
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    engine.check_integrity()
    assert engine.block_manager.num_free == engine.block_manager.num_pages
    return outputs


def script(text, then=EOS):
    return [ord(character) - 33 for character in text] + [then] * 400


def text_of(outputs):
    return "".join(output.text for output in outputs)


def ids_of(outputs):
    return [token for output in outputs for token in output.token_ids]


def test_end_of_sequence():
    outputs = generate(SamplingParams(), ScriptedRunner(script("abc")))
    assert text_of(outputs) == "abc"
    assert ids_of(outputs) == script("abc")[:4]
    assert [o.finish_reason for o in outputs] == [None, None, None, "stop"]
    assert [o.digest is None for o in outputs] == [True, True, True, False]


def test_ignore_eos_and_length():
    outputs = generate(SamplingParams(max_tokens=7, ignore_eos=True), ScriptedRunner(script("abc")))
    assert (text_of(outputs), len(ids_of(outputs))) == ("abc", 7)
    assert outputs[-1].finish_reason == "length"


def test_without_max_tokens_the_pool_bounds_what_the_model_would_not():
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    for options, length in (
        ({"num_pages": 2}, 128),
        ({"num_pages": 40}, 400),
        ({"max_model_len": 100}, 100),
    ):
        outputs = generate(params, ScriptedRunner(script("abc"), **options))
        assert len(ids_of(outputs)) == length - 1
        assert outputs[-1].finish_reason == "length"


def test_stop_ids():
    params = SamplingParams(stop_token_ids=(ord("c") - 33, 10**6))
    outputs = generate(params, ScriptedRunner(script("abcd")))
    assert (text_of(outputs), ids_of(outputs)) == ("ab", script("abc")[:3])
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", ord("c") - 33)
    ended = generate(SamplingParams(), ScriptedRunner(script("ab")))[-1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", EOS)


def test_stop_strings_are_held_back_and_cut_off():
    outputs = generate(SamplingParams(stop=("cde", "x")), ScriptedRunner(script("abcdefg")))
    assert [o.text for o in outputs] == ["a", "b", "", "", ""]
    assert ids_of(outputs) == script("abcde")[:5]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", "cde")
    assert {output.stop_reason for output in outputs[:-1]} == {None}


def test_of_stop_strings_that_end_together_the_longest_is_named():
    for stop in (("e", "cde", "de"), ("cde", "de"), ("x", "e", "de", "cde")):
        [*_, last] = generate(SamplingParams(stop=stop), ScriptedRunner(script("abcdefg")))
        assert (last.finish_reason, last.stop_reason) == ("stop", "cde")


def test_text_held_back_comes_out_at_the_end():
    held = SamplingParams(stop=("cdX",), max_tokens=4)
    outputs = generate(held, ScriptedRunner(script("abcd")))
    assert [o.text for o in outputs] == ["a", "b", "", "cd"]
    assert outputs[-1].finish_reason == "length"
    # Half a character, and then the end.
    outputs = generate(SamplingParams(), ScriptedRunner([64, 90, 91, EOS]))
    assert [o.text for o in outputs] == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("stop", "reason", "text"), [("\ufffd", "stop", "a"), ("b", "length", "a\ufffd")]
)
def test_the_first_half_of_a_character_at_the_end_is_text_that_may_be_a_stop(stop, reason, text):
    """Its bytes are held back until no token can complete them, so the last look is at the end."""
    runner = ScriptedRunner([ord("a") - 33, 90, 91])
    outputs = generate(SamplingParams(max_tokens=3, stop=(stop,)), runner)
    assert (outputs[-1].finish_reason, text_of(outputs)) == (reason, text)
    assert outputs[-1].stop_reason == (stop if reason == "stop" else None)


@pytest.mark.parametrize(("stop", "text"), [("<95>", "ab"), ("b<95>c", "a"), ("<95>d", "abcd")])
def test_a_stop_string_that_names_a_special_token(stop, text):
    tokens = [*script("ab")[:2], 95, *script("cd")]
    params = SamplingParams(stop=(stop,), max_tokens=5)
    outputs = generate(params, ScriptedRunner(tokens))
    assert "".join(output.text for output in outputs) == text
    assert outputs[-1].finish_reason == ("length" if text == "abcd" else "stop")
    held = SamplingParams(stop=(stop,), max_tokens=5, min_tokens=5)
    assert generate(held, ScriptedRunner(tokens))[-1].completion_tokens == 5


@pytest.mark.parametrize("max_tokens", [20, 5])
def test_what_ended_the_output_is_part_of_the_text_if_asked_for(max_tokens):
    params = SamplingParams(
        stop=("cd",), stop_token_ids=(64,), include_stop_str_in_output=True, max_tokens=max_tokens
    )
    outputs = generate(params, ScriptedRunner(script("bcde")))
    assert [o.text for o in outputs] == ["b", "c", "d"]  # nothing is held back
    assert outputs[-1].finish_reason == "stop"
    assert text_of(generate(params, ScriptedRunner(script("xa")))) == "xa"
    # The first byte of a character comes out with the stop that cuts it off.
    assert text_of(generate(params, ScriptedRunner([90, 64]))) == "\ufffda"
    # A special token ends the text by its name only where those are shown.
    assert text_of(generate(params, ScriptedRunner(script("xy")))) == "xy"
    shown = dataclasses.replace(params, skip_special_tokens=False)
    assert text_of(generate(shown, ScriptedRunner(script("xy")))) == "xy<96>"
    held = dataclasses.replace(params, include_stop_str_in_output=False)
    assert text_of(generate(held, ScriptedRunner(script("xa")))) == "x"


def test_special_tokens_are_shown_by_name_if_asked_for():
    tokens = [*script("ab")[:2], 95, *script("cd")]
    shown = SamplingParams(skip_special_tokens=False, max_tokens=5)
    outputs = generate(shown, ScriptedRunner(tokens))
    assert [o.text for o in outputs] == ["a", "b", "<95>", "c", "d"]
    hidden = generate(SamplingParams(max_tokens=5), ScriptedRunner(tokens))
    assert text_of(hidden) == "abcd"
    assert [o.digest for o in hidden] == [o.digest for o in outputs]
    stopped = SamplingParams(skip_special_tokens=False, max_tokens=5, stop=("b<95>c",))
    assert text_of(generate(stopped, ScriptedRunner(tokens))) == "a"


def test_min_tokens_holds_off_every_kind_of_stop():
    params = SamplingParams(min_tokens=5, max_tokens=20, stop=("b",), stop_token_ids=(64,))
    # The stop string within the first five does not end it; the sixth token may be the stop id.
    ids = ids_of(outputs := generate(params, ScriptedRunner(script("bbbbb", then=64))))
    assert ids == [65] * 5 + [64]
    # Before that the stop id cannot be chosen: the lowest of the other, equal logits is.
    assert ids_of(generate(params, ScriptedRunner(script("", then=64)))) == [0] * 5 + [64]
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize("max_tokens", [1, 64, None])
def test_max_tokens_none_runs_to_the_length_of_the_model(max_tokens):
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    outputs = generate(params, FakeRunner(max_model_len=100), prompt=range(30))
    assert len(ids_of(outputs)) == (max_tokens or 70)
    assert outputs[-1].finish_reason == "length"


def test_seeds():
    greedy, noisy = SamplingParams(max_tokens=1), SamplingParams(max_tokens=8, temperature=1.0)
    assert generate(greedy)[-1].seed is None
    assert generate(SamplingParams(max_tokens=1, seed=4))[-1].seed == 4
    first, second = generate(noisy), generate(noisy)
    seed = first[-1].seed
    assert seed != second[-1].seed
    assert 0 <= seed < 2**64
    again = generate(SamplingParams(max_tokens=8, temperature=1.0, seed=seed))
    assert again[-1].digest == first[-1].digest
    assert ids_of(again) == ids_of(first)


def test_noise_is_keyed_by_the_absolute_position():
    params = SamplingParams(max_tokens=70, temperature=1.0, seed=2**40 + 9, ignore_eos=True)
    prompt = list(range(30))
    ids = ids_of(generate(params, prompt=prompt))
    for count, token in enumerate(ids):
        history = np.array(prompt + ids[:count], dtype=np.int64)
        logits = FakeRunner().logits_of(history, batch=None)
        position = len(prompt) + count
        assert token == reference_sampling.sample(
            logits, temperature=1.0, seed=params.seed, position=position
        )


def test_logprobs():
    outputs = generate(SamplingParams(max_tokens=3, logprobs=2))
    for output in outputs:
        [entry] = output.logprobs
        assert entry.token_id == output.token_ids[0] == entry.top[0][0]
        assert entry.logprob == entry.top[0][1] >= entry.top[1][1]
        assert -10 < entry.logprob < 0
    assert generate(SamplingParams(max_tokens=1, logprobs=0))[0].logprobs[0].top == []
    assert generate(SamplingParams(max_tokens=1))[0].logprobs is None


def test_non_finite_logits_end_their_own_request_only():
    engine = fake_engine(runner=FakeRunner(poison=77))
    engine.add_request("bad", [5, 77], SamplingParams(max_tokens=9, logprobs=1))
    engine.add_request("good", [5], SamplingParams(max_tokens=9, ignore_eos=True))
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    bad = [o for o in outputs if o.request_id == "bad"][-1]
    assert (bad.finish_reason, bad.error) == ("error", NON_FINITE)
    good = [o for o in outputs if o.request_id == "good"]
    alone = generate(SamplingParams(max_tokens=9, ignore_eos=True), prompt=[5])
    assert good[-1].digest == alone[-1].digest
    engine.check_integrity()


@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_a_fault_in_the_model_fails_its_step_and_no_more(fail_at, caplog):
    caplog.set_level(logging.CRITICAL)
    engine = fake_engine(EngineConfig(max_num_seqs=2), FakeRunner(fail_at=fail_at))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    for i in range(4):
        engine.add_request(f"r{i}", [i], params)
    last = {}
    while engine.has_unfinished():
        last |= {o.request_id: o for o in engine.step() if o.finish_reason}
        engine.check_integrity()
    assert [last[f"r{i}"].finish_reason for i in range(4)] == ["error"] * 2 + ["length"] * 2
    assert last["r0"].error == "the step failed: RuntimeError: injected fault"
    for i in (2, 3):
        assert last[f"r{i}"].digest == generate(params, prompt=[i])[-1].digest


def test_a_fault_in_the_text_fails_its_request_and_no_more(caplog):
    caplog.set_level(logging.CRITICAL)
    engine = fake_engine()
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    for name in ("bad", "good"):
        engine.add_request(name, [3], params)
    engine._requests["bad"].detokenizer = None
    outputs = engine.step()
    assert [(o.request_id, o.finish_reason) for o in outputs] == [("bad", "error"), ("good", None)]
    assert "AttributeError" in outputs[0].error
    while engine.has_unfinished():
        outputs = engine.step()
    assert outputs[-1].finish_reason == "length"
    engine.check_integrity()


def test_abort_waiting_running_unknown_and_finished():
    engine = fake_engine(EngineConfig(max_num_seqs=1))
    for name in ("running", "waiting"):
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=50, ignore_eos=True))
    engine.step()
    assert (engine.stats()["running"], engine.stats()["waiting"]) == (1, 1)
    assert engine.abort("nobody") is None
    waiting, running = engine.abort("waiting"), engine.abort("running", "because")
    assert (waiting.finish_reason, waiting.completion_tokens, waiting.error) == ("abort", 0, None)
    assert (running.finish_reason, running.completion_tokens) == ("abort", 1)
    assert running.error == "because"
    assert engine.abort("running") is None
    assert not engine.has_unfinished()
    assert engine.step() == []
    assert engine.stats()["free_pages"] == engine.stats()["num_pages"]
    engine.check_integrity()


BAD = [
    ([], {}, "prompt", None, "got no tokens"),
    ([VOCAB], {}, "prompt", None, "got token id 97, expected 0..96"),
    ([3, -1], {}, "prompt", None, "got token id -1"),
    ([1.5], {}, "prompt", None, "flat list of integer"),
    ([[1], [2]], {}, "prompt", None, "flat list of integer"),
    ([[1], [2, 3]], {}, "prompt", None, "flat list of integer"),
    (["a"], {}, "prompt", None, "flat list of integer"),
    ([2**70], {}, "prompt", None, "flat list of integer"),
    ([1] * 400, {}, "prompt", "context_length_exceeded", "got 400 tokens, at most 399"),
    ([1] * 300, {"max_tokens": 101}, "max_tokens", "context_length_exceeded", "at most 100 fit"),
    (
        [1] * 390,
        {"max_tokens": None, "min_tokens": 11},
        "min_tokens",
        "context_length_exceeded",
        "got 11 after a prompt of 390 tokens, at most 10",
    ),
    (
        [1] * 200,
        {"max_tokens": 121},
        "max_tokens",
        "context_length_exceeded",
        "need 6 pages of 64 tokens, the KV cache has 5",
    ),
    (
        [1],
        {"stop_token_ids": tuple(range(VOCAB)), "min_tokens": 1},
        "min_tokens",
        None,
        "every token",
    ),
    ([1], {"deterministic": False}, "deterministic", None, "without the fast mode"),
]


@pytest.mark.parametrize(("prompt", "params", "param", "code", "message"), BAD)
def test_bad_requests_cost_one_line(prompt, params, param, code, message):
    engine = fake_engine(EngineConfig(allow_fast=False), FakeRunner(num_pages=5))
    with pytest.raises(RequestError, match=message) as refusal:
        engine.add_request("x", prompt, SamplingParams(**{"max_tokens": 1} | params))
    assert (refusal.value.param, refusal.value.code) == (param, code)
    assert "\n" not in str(refusal.value)
    assert not engine.has_unfinished()


def test_a_request_that_just_fits_the_pool_runs():
    runner = FakeRunner(num_pages=5)
    outputs = generate(SamplingParams(max_tokens=120, ignore_eos=True), runner, prompt=[1] * 200)
    assert len(ids_of(outputs)) == 120


def test_an_id_in_use_is_refused():
    engine = fake_engine()
    engine.add_request("x", [1], SamplingParams())
    with pytest.raises(RequestError, match="'x' is in use"):
        engine.add_request("x", [1], SamplingParams())


def test_first_come_first_served_even_when_a_later_one_would_fit():
    engine = fake_engine(runner=FakeRunner(num_pages=4))
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    for token, (name, size) in enumerate((("first", 100), ("large", 150), ("small", 1))):
        engine.add_request(name, [token] * size, params)
    started = []
    while engine.has_unfinished():
        engine.step()
        started += [r.request_id for r in engine.scheduler.running if r.request_id not in started]
        if "first" in [r.request_id for r in engine.scheduler.running]:
            assert engine.stats()["running"] == 1
    assert started == ["first", "large", "small"]


def test_decodes_and_chunks_share_a_step_within_its_budget():
    engine = fake_engine(EngineConfig(max_num_batched_tokens=10))
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    engine.add_request("a", [1], params)
    engine.step()
    engine.add_request("long", [2] * 25, params)
    engine.add_request("b", [3] * 3, params)
    engine.step()
    engine.step()
    engine.step()
    lengths = [np.diff(batch.query_start).tolist() for batch in engine.runner.batches]
    assert lengths == [[1], [1, 9], [1, 9], [1, 7, 2]]
    assert [len(batch.logit_rows) for batch in engine.runner.batches] == [1, 1, 1, 2]
    assert engine.stats()["prompt_tokens"] == 1 + 25 + 2


def test_a_step_is_deterministic_if_any_of_its_requests_is():
    engine = fake_engine()
    fast = SamplingParams(max_tokens=6, deterministic=False, ignore_eos=True)
    exact = SamplingParams(max_tokens=2, ignore_eos=True)
    engine.add_request("fast", [1], fast)
    engine.step()
    engine.add_request("exact", [1], exact)
    while engine.has_unfinished():
        last = engine.step()[0]
    modes = [batch.deterministic for batch in engine.runner.batches]
    assert modes == [False, True, True, False, False, False]
    assert last.deterministic is False


def test_batch_layout():
    engine = fake_engine()
    engine.add_request("a", [4] * 70, SamplingParams(max_tokens=5, ignore_eos=True))
    engine.add_request("b", [5] * 3, SamplingParams(max_tokens=5, ignore_eos=True))
    engine.step()
    engine.step()
    prefill, decode = engine.runner.batches
    for batch in (prefill, decode):
        for name in ("input_ids", "positions", "query_start", "block_tables", "logit_rows"):
            assert getattr(batch, name).dtype == np.int32, name
    assert prefill.positions.tolist() == [*range(70), *range(3)]
    assert prefill.query_start.tolist() == [0, 70, 73]
    assert prefill.logit_rows.tolist() == [69, 72]
    assert prefill.block_tables.shape == (2, math.ceil(70 / 64))
    assert decode.positions.tolist() == [70, 3]
    assert decode.logit_rows.tolist() == [0, 1]
    assert prefill.block_tables[1, 1] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: e.scheduler.running.pop(),
        lambda e: e.scheduler.waiting.pop(),
        lambda e: e._requests.pop("r1"),
        lambda e: e.scheduler.running.reverse(),
        lambda e: e.block_manager.deallocate("r0"),
    ],
)
def test_lost_and_disordered_requests_are_found(damage):
    engine = fake_engine(EngineConfig(max_num_seqs=2))
    for i in range(3):
        engine.add_request(f"r{i}", [1], SamplingParams(max_tokens=5, ignore_eos=True))
    engine.step()
    engine.check_integrity()
    damage(engine)
    with pytest.raises(RuntimeError, match="requests do not add up: "):
        engine.check_integrity()
