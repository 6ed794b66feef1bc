"""Answers against the written contract: what is wrong in the same way under every load.

Each function returns how many values it compared with the reference of ``kernels/``, which is
written from docs/arithmetic.md alone, or raises ``Difference``.
"""

import hashlib
import struct

import numpy as np
from drawn_requests import request
from fuzzer import Answer, Difference
from mpmath import mp
from tiny_models import tokens
from tiny_runner import TinyModelRunner

from detinfer import sampling
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.kernels import reference, reference_sampling
from detinfer.models import rope_table
from detinfer.params import SamplingParams

# One token, liked so much that it comes more often than a byte can count.
MONOTONE = (
    tokens(9, seed=1),
    SamplingParams(
        max_tokens=300, ignore_eos=True, logit_bias={5: 80.0}, frequency_penalty=0.3, logprobs=1
    ),
)


def answers():
    """Whole answers: every token, log-probability and digest from the logits it was chosen from."""
    runner = TinyModelRunner(8, model="long")
    drawn = [request(number) for number in range(0, 24, 2)]
    return sum(_answer(runner, *one) for one in [*((d.prompt, d.params) for d in drawn), MONOTONE])


def _answer(runner, prompt, params):
    rows, forward = [], runner._forward

    def keep(batch):
        logits = forward(batch)
        if len(batch.logit_rows):
            rows.append(logits[-1].numpy().copy())
        return logits

    runner._forward = keep
    try:
        engine = Engine(EngineConfig(prefix_caching=False, speculation=False), runner)
        engine.add_request("x", prompt, params)
        answer = Answer()
        while engine.has_unfinished():
            for output in engine.step():
                answer.add(output)
    finally:
        runner._forward = forward
    chain = hashlib.sha256(b"detinfer-digest-1").digest()
    stops = sorted({*params.stop_token_ids, *(() if params.ignore_eos else runner.eos_token_ids)})
    for i, token in enumerate(answer.token_ids):
        row, masked = rows[i - len(answer.token_ids)], stops if i < params.min_tokens else ()
        expected = reference_sampling.sample(
            row,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=dict(params.logit_bias),
            prompt_ids=prompt,
            output_ids=answer.token_ids[:i],
            seed=params.seed or 0,
            position=len(prompt) + i,
            masked=masked,
        )
        _same(f"token {i}", token, expected)
        if params.logprobs is not None:
            table = reference.log_softmax(row[None])[0]
            _same(f"log-probability {i}", answer.logprobs[i].logprob, float(table[token]))
            order = np.argsort(-row, kind="stable")[: params.logprobs].tolist()
            _same(f"top {i}", answer.logprobs[i].top, [(t, float(table[t])) for t in order])
        sums = (int(one) for one in reference_sampling.checksum(row[None])[0])
        chain = hashlib.sha256(chain + struct.pack("<IQQ", token, *sums)).digest()
    _same("digest", answer.digest, chain.hex())
    return len(answer.token_ids)


def filter_edges():
    """min-p at the very weight of a token, and one float above it: the weight's every bit."""
    below = -np.random.default_rng(3).uniform(0.01, 30, 1000).astype(np.float32)
    for x in below:
        weight = reference.exp32(x[None])[0]
        for min_p, kept in ((weight, 2), (np.nextafter(weight, np.float32(1)), 1)):
            params = SamplingParams(temperature=1.0, min_p=float(min_p))
            found = sampling._filter(np.array([0, x], np.float32), params)
            _same(f"kept of 0 and {x} by min_p {min_p}", len(found), kept)
    return len(below)


def rotary_positions():
    """Rows of the rotary table far down, against arithmetic of 60 digits."""
    frequencies = np.array([1.0, 0.3, 0.001], np.float32)
    table = rope_table.build_rope_table(frequencies, 9000)
    positions = [0, 1, 255, 256, 257, 2047, 2049, 4099, 8191, 8193, 8999]
    for position in positions:
        for i, frequency in enumerate(frequencies):
            angle = np.float32(position) * frequency
            with mp.workdps(60):
                exact = mp.cos(mp.mpf(float(angle)))
                _same(f"cos of row {position}", table.cos[position, i].item(),
                      float(rope_table.round_to_binary32(exact)))  # fmt: skip
    return len(positions)


def _same(what, got, expected):
    if got != expected:
        raise Difference(f"{what}: got {got!r}, expected {expected!r}")
