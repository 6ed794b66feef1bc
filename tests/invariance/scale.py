"""What no drawn episode comes to: thousands of keys, hundreds of rows, a model's end, faults.

Each function returns how many answers it compared with those got alone, or raises ``Difference``.
"""

from dataclasses import replace

from drawn_requests import request
from fuzzer import Answer, Difference, compare
from tiny_models import tokens
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams

ALONE = EngineConfig(prefix_caching=False, speculation=False)
LENGTHS = (2100, 4200)  # keys: five and nine segments of 512, more than 32 and 64 pages
DECODED = 40
CROWD = 400  # sequences, each of which has a row in every step
KINDS = 40  # distinct requests among them


def run(engine, requests, max_chunk=None):
    """The answers to requests (name: prompt and parameters) that are added together."""
    engine.scheduler.limits.max_chunk = max_chunk
    got = {name: Answer() for name in requests}
    for name, (prompt, params) in requests.items():
        engine.add_request(name, prompt, params)
    while engine.has_unfinished():
        for output in engine.step():
            got[output.request_id].add(output)
            if output.finish_reason == "error":
                raise Difference(f"{output.request_id} ended with an error: {output.error}")
    engine.check_integrity()
    return got


def long_contexts(plan="fused"):
    """Prompts of thousands of tokens: decoded or prefilled, in chunks, warm, beside each other."""
    runner, compared = TinyModelRunner(400, plan, model="long"), 0
    one = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=2)
    params = replace(one, max_tokens=DECODED)

    def check(what, got, expected):
        nonlocal compared
        compare(f"{what} of {len(prompt)} tokens", got, expected)
        compared += 1

    def alone(ids, params, max_chunk=None):
        return run(Engine(ALONE, runner), {"x": (ids, params)}, max_chunk)["x"]

    for length in LENGTHS:
        prompt = tokens(length, seed=length)
        whole = alone(prompt, params)
        for count in (1, DECODED - 1):  # what was decoded, prefilled
            again = alone(prompt + whole.token_ids[:count], one)
            got = Answer(whole.token_ids[count : count + 1], "", whole.logprobs[count : count + 1])
            expected = Answer(again.token_ids, "", again.logprobs)
            check(f"token {count}", got, expected)
        check("chunks", alone(prompt, params, max_chunk=301), whole)
        # All but the first page is shared: the same tokens after another beginning.
        other = [*tokens(64, seed=length + 1), *prompt[64:]]
        apart = alone(other, params)
        warm = Engine(EngineConfig(max_num_batched_tokens=512), runner)
        run(warm, {"w": (other[:1060], one)})
        check("before", run(warm, {"x": (prompt, params)})["x"], whole)
        got = run(warm, {"y": (other, params), "x": (prompt, params), "z": (prompt[:1700], one)})
        check("warm", got["x"], whole)
        check("another beginning", got["y"], apart)
    return compared


def crowd(plan="fused"):
    """Hundreds of sequences, all of them compared, in steps of 384 rows and more."""
    runner = TinyModelRunner(CROWD + 50, plan)
    kinds = [_short(2 * number) for number in range(KINDS)]
    alone = [run(Engine(ALONE, runner), {"x": kind})["x"] for kind in kinds]
    config = EngineConfig(max_num_seqs=CROWD, max_num_batched_tokens=5000)
    compared = 0
    for count in (384, 399, CROWD):  # of rows when all of them decode
        engine = Engine(config, runner)
        rows = runner.rows = []
        crowd = {str(i): kinds[i % KINDS] for i in range(count)}
        for name, answer in run(engine, crowd).items():
            compare(f"{name} of {count}", answer, alone[int(name) % KINDS])
            compared += 1
        assert sum(one >= 384 for one in rows) >= 3, rows
    return compared


class Counting(TinyModelRunner):
    """Counts to seven and again: drafts of any length are right."""

    def _forward(self, batch):
        logits = super()._forward(batch)
        for row, flat in enumerate(batch.logit_rows):
            logits[row, (batch.input_ids[flat] + 1) % 7] += 100
        return logits


def model_end(plan="fused"):
    """Answers up to the model's last position, with drafts that are always right."""
    runner = Counting(8, plan)
    for length in range(60, 70):
        prompt = [i % 7 for i in range(length)]
        params = SamplingParams(max_tokens=runner.max_model_len - length, ignore_eos=True)
        alone = run(Engine(ALONE, runner), {"x": (prompt, params)})["x"]
        engine = Engine(EngineConfig(), runner)
        compare(f"{length} tokens", run(engine, {"x": (prompt, params)})["x"], alone)
        assert engine.stats()["accepted_tokens"] > 100
    return 10


def failed_steps(plan="fused"):
    """The same prompts again after steps that failed, on pages of NaN."""
    runner, compared = TinyModelRunner(8, plan), 0
    params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=1)
    for when in ("before", "after"):
        for length in range(60, 151, 9):
            prompt = tokens(length, seed=length)
            alone = run(Engine(ALONE, runner), {"x": (prompt, params)})["x"]
            runner.spoil(range(8))
            engine = Engine(EngineConfig(), runner)
            engine.add_request("failing", prompt, params)
            runner.failing = when
            assert [output.finish_reason for output in engine.step()] == ["error"]
            compare(f"after a fault {when}", run(engine, {"x": (prompt, params)})["x"], alone)
            compared += 1
    return compared


def _short(number):
    """A request of the fuzzer's population with a short prompt and four tokens of answer."""
    drawn = request(number)
    params = replace(
        drawn.params, max_tokens=4, min_tokens=4, stop=(), logprobs=1, prompt_logprobs=None
    )
    return drawn.prompt[-1 - number % 3 :], params
