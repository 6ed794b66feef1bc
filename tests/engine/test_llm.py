"""LLM.generate over the same Engine.step()."""

import subprocess
import sys
from dataclasses import replace

import pytest
from fake_runner import FakeRunner, fake_engine

from detinfer import LLM, SamplingParams
from detinfer.errors import ConfigError, RequestError


def llm(**options):
    return LLM(engine=fake_engine(runner=FakeRunner(**options)))


def test_the_three_forms_of_prompts_agree():
    model, params = llm(), SamplingParams(max_tokens=9, logprobs=1)
    [one] = model.generate("abc", params)
    [listed] = model.generate(["abc"], params)
    [ids] = model.generate([[64, 65, 66]], params)
    assert one == listed == ids
    assert one.prompt_token_ids == [64, 65, 66]
    assert len(one.logprobs) == len(one.token_ids) <= 9
    assert len(one.digest) == 64
    assert one.system_fingerprint == "detinfer-test"
    assert one.deterministic
    assert one.finish_reason in ("stop", "length")


def test_many_prompts_each_with_its_own_parameters():
    model = llm()
    prompts = ["a", "bc", [1, 2, 3], "x" * 100]
    params = [SamplingParams(max_tokens=n, temperature=n % 2, seed=n) for n in (3, 4, 5, 6)]
    together = model.generate(prompts, params)
    for prompt, p, got in zip(prompts, params, together, strict=True):
        assert model.generate([prompt], [p]) == [got]
    assert model.generate([]) == []


def test_a_bad_prompt_among_good_ones_runs_nothing():
    model = llm()
    with pytest.raises(RequestError, match="got no tokens"):
        model.generate(["abc", ""])
    assert not model.engine.has_unfinished()
    assert model.engine.stats()["steps"] == 0
    with pytest.raises(RequestError, match="params: got 1 for 2 prompts"):
        model.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(RequestError, match="prompts: got int"):
        model.generate([1, 2])
    assert len(model.generate("abc")) == 1


def test_an_error_is_told_with_the_completion(caplog):
    caplog.set_level("CRITICAL")
    bad, good = llm(poison=77).generate([[77], [5]], SamplingParams(max_tokens=2, ignore_eos=True))
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert "NaN or infinite" in bad.error


def test_an_interrupt_leaves_no_request_behind():
    model = llm()
    forward = model.engine.runner.forward

    def interrupted(batch):
        if len(model.engine.runner.batches) == 3:
            raise KeyboardInterrupt
        return forward(batch)

    model.engine.runner.forward = interrupted
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        model.generate(["abc", "d"], params)
    model.engine.check_integrity()
    assert not model.engine.has_unfinished()
    model.engine.runner.forward = forward
    assert model.generate("abc", params) == llm().generate("abc", params)


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="max_len: no such setting, expected one of model, "):
        LLM("somewhere", max_len=3)


def test_importing_the_package_is_light():
    code = (
        "import sys, detinfer; from detinfer import SamplingParams;"
        "import detinfer.engine.process, detinfer.engine.async_engine;"
        "print(detinfer.__version__, [m for m in ('torch', 'numba', 'transformers')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0.1.0 []", done.stderr


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(RequestError, match="prompt: got text that is not valid UTF-8"):
        llm().generate(["a \udcff b"])


def test_n_gives_so_many_answers_each_of_a_seed_that_gives_it_again():
    model = llm()
    params = SamplingParams(max_tokens=8, temperature=1, ignore_eos=True)
    answers = model.generate(["abc", "de"], replace(params, n=3))
    assert [a.prompt_token_ids for a in answers] == [[64, 65, 66]] * 3 + [[67, 68]] * 3
    assert len({a.seed for a in answers}) == 6  # drawn, since none was given
    for got in answers:
        assert model.generate([got.prompt_token_ids], replace(params, seed=got.seed)) == [got]
    first = model.generate("abc", replace(params, n=2, seed=9))[0]
    assert first == model.generate("abc", replace(params, seed=9))[0]


def test_the_answers_of_a_greedy_request_are_the_same():
    first, second = llm().generate("abc", SamplingParams(max_tokens=8, n=2))
    assert first == second
    assert first.seed is None


@pytest.mark.parametrize("n", [0, 129, 1.0, True, "2"])
def test_n_out_of_range(n):
    with pytest.raises(RequestError, match=r"^n: got"):
        SamplingParams(n=n)
