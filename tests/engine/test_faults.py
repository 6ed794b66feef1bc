"""Whatever raises for one request in a step ends that request, and changes nothing of the others.

The calls are found, not listed: each request of a scenario is run once under a trace that notes
every line of detinfer which ran on behalf of the victim, and then once for each of them with that
line made to raise.
"""

import collections
import contextlib
import logging
import random
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fake_runner import EOS, FakeRunner, fake_engine

import detinfer
from detinfer.config import EngineConfig
from detinfer.engine import choosing, layout
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.detokenizer import token_decoder
from detinfer.engine.engine import Engine
from detinfer.engine.request import Request
from detinfer.engine.scheduler import ScheduledRow, Scheduler
from detinfer.engine.step import Stepper
from detinfer.params import SamplingParams
from detinfer.sampling import SamplingRow

SOURCES = str(Path(detinfer.__file__).parent)

# What is done for all of a step together: no failure of it is any request's in particular.
TOGETHER = {
    function.__code__
    for function in (
        Engine.step,
        Stepper.step,
        Stepper._schedule,
        Stepper._run,
        Stepper.discard,
        layout.lay_out,
        choosing.read_logits,
        Scheduler.schedule,
    )
}


class InjectedError(Exception):
    pass


class RepeatingRunner(FakeRunner):
    """Tokens follow those before them often enough for drafts."""

    def logits_of(self, history, batch):
        logits = super().logits_of(history, batch)
        logits[history[-7] if len(history) > 6 else 0] += 7
        logits[EOS] = -20
        return logits


SHARED = [(7 * i) % 11 for i in range(64)]
EVERYTHING = SamplingParams(
    max_tokens=14,
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
    logit_bias={3: 1.5},
    seed=5,
    min_tokens=9,
    stop=("never there",),
    stop_token_ids=(17,),
    logprobs=2,
    prompt_logprobs=1,
)
PLAIN = SamplingParams(max_tokens=20, ignore_eos=True, logprobs=0)
STOPPED = SamplingParams(max_tokens=40, stop=tuple("abcdefghijklmnop"), seed=1, temperature=1.0)


@dataclass
class Scenario:
    """Requests in order of arrival, the first of them some steps before the others."""

    requests: dict
    num_pages: int = 40

    def engine(self):
        return fake_engine(
            EngineConfig(max_num_batched_tokens=100), RepeatingRunner(num_pages=self.num_pages)
        )


@pytest.fixture
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def prompt(size, seed):
    rng = random.Random(seed)
    return (SHARED + [rng.randrange(90) for _ in range(200)])[:size]


SCENARIOS = {
    "everything": Scenario(
        {
            "first": (prompt(20, 1), PLAIN),
            "victim": (prompt(66, 2), EVERYTHING),
            "last": (prompt(9, 3), replace(EVERYTHING, seed=6)),
        }
    ),
    "drafts and shared pages": Scenario(
        {
            "first": (prompt(66, 1), replace(EVERYTHING, prompt_logprobs=None)),
            "victim": (prompt(64, 0) + SHARED, replace(PLAIN, max_tokens=30)),
            "last": (prompt(64, 0) + SHARED, replace(PLAIN, max_tokens=31)),
        }
    ),
    "sent back to wait": Scenario(
        {
            "first": (prompt(120, 1), replace(PLAIN, max_tokens=30)),
            "second": (prompt(120, 2), replace(PLAIN, max_tokens=22)),
            "victim": (prompt(70, 3), replace(STOPPED, max_tokens=12, stop=())),
            "last": (prompt(70, 4), replace(PLAIN, max_tokens=5)),
        },
        num_pages=5,
    ),
    "a stop string": Scenario({"first": (prompt(9, 1), PLAIN), "victim": (prompt(9, 2), STOPPED)}),
}


def play(scenario, trace=None, only=None):
    """Every request's text, tokens and last increment; the engine must add up after each step."""
    engine = scenario.engine()
    todo = {name: one for name, one in scenario.requests.items() if only in (None, name)}
    found = {name: ["", [], None] for name in todo}
    for clock in range(2000):
        if clock in (0, 3):  # the others find the first one's pages
            for name in list(todo)[: 1 if clock == 0 else None]:
                engine.add_request(name, *todo.pop(name))
        with trace(engine) if trace else contextlib.nullcontext():
            outputs = engine.step()
        engine.check_integrity()
        for output in outputs:
            text, ids, last = found[output.request_id]
            assert last is None or last.finish_reason is None, "an increment after the last one"
            found[output.request_id] = [text + output.text, ids + output.token_ids, output]
        if clock > 3 and not engine.has_unfinished():
            break
    assert all(last.finish_reason for _, _, last in found.values())
    assert engine.block_manager.num_free == engine.block_manager.num_pages
    return engine, found


def answers_of(found):
    return {
        name: (text, ids, last.finish_reason, last.digest)
        for name, (text, ids, last) in found.items()
    }


class Trace:
    """Follows the lines that run on behalf of one request; raises at one of them if told to.

    A frame works for the request it has among its arguments, or any of its parts, or for all whose
    rows are in a list among them, or else for whom its caller does.
    """

    def __init__(self, fault=None, first=0):
        self.hits = collections.Counter()
        self.fault, self.first = fault, first
        self.raised = 0

    @contextlib.contextmanager
    def __call__(self, engine):
        self.parts = {}
        for name, request in engine._requests.items():
            self.parts[name] = name
            for part in ("params", "detokenizer", "stop_strings", "drafts", "digest"):
                self.parts[id(getattr(request, part))] = name
        before = sys.gettrace()
        sys.settrace(self.enter)
        sys.setprofile(self.go_on)
        try:
            yield
        finally:
            sys.setprofile(None)
            sys.settrace(before)

    def go_on(self, *_):
        """A trace that raises is taken off: it is put back, for the fault to last."""
        if sys.gettrace() is None:
            sys.settrace(self.enter)

    def enter(self, frame, event, _):
        code = frame.f_code
        wanted = self.fault is None or self.fault[0] is code
        if not wanted or not code.co_filename.startswith(SOURCES) or not self.for_victim(frame):
            return None
        self.line(frame, event, _)
        return self.line

    def line(self, frame, event, _):
        if event == "call" or (event == "line" and not self.others_turn(frame)):
            site = (frame.f_code, event, frame.f_lineno)
            self.hits[site] += 1
            if site == self.fault and self.hits[site] > self.first:
                self.raised += 1
                raise InjectedError(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        return self.line

    def others_turn(self, frame):
        """Whether a loop over the rows of all is at somebody else's."""
        owners = {self.owner(value) for value in frame.f_locals.values()}
        return not owners <= {None, "victim"}

    def for_victim(self, frame):
        while frame is not None and frame.f_code not in TOGETHER:
            code = frame.f_code
            count = code.co_argcount + code.co_kwonlyargcount
            values = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
            owners = [owner for value in values if (owner := self.owner(value)) is not None]
            if owners:
                return owners[0] == "victim"
            lists = [value for value in values if isinstance(value, list | tuple) and value]
            if any(self.owner(one) == "victim" for value in lists for one in value):
                return True
            if any(self.owner(one) is not None for value in lists for one in value):
                return False
            frame = frame.f_back
        return False

    def owner(self, value):
        match value:
            case Request():
                return value.request_id
            case ScheduledRow():
                return value.request.request_id
            case SamplingRow():
                return self.parts.get(id(value.params))
            case str():
                return self.parts.get(value)
        return self.parts.get(id(value))


def check_fault(scenario, expected, fault, first):
    """Plays a scenario with a fault in it; whether it ended the victim."""
    trace = Trace(fault, first)
    engine, found = play(scenario, trace)
    got = answers_of(found)
    victim = got.pop("victim")
    assert got == {name: answer for name, answer in expected.items() if name != "victim"}
    if victim != expected["victim"]:
        assert victim[2] == "error"
        assert "InjectedError" in found["victim"][2].error
    # The pages that are named are those of the tokens they are named after.
    ids, params = scenario.requests["victim"]
    engine.add_request("again", ids, params)
    ids = []
    while engine.has_unfinished():
        for last in engine.step():
            ids += last.token_ids
    assert (ids, last.digest) == (expected["victim"][1], expected["victim"][3])
    return trace.raised > 0


def faults(event):
    """Every place that works for the victim in some scenario: each once, where it is first met."""
    met = set()
    for scenario in SCENARIOS.values():
        _, found = play(scenario)
        expected = answers_of(found)
        trace = Trace()
        play(scenario, trace)
        for site, count in trace.hits.items():
            if site[1] == event and site not in met:
                met.add(site)
                yield scenario, expected, site, count


def test_the_scenarios_are_what_they_say():
    played = {name: play(scenario) for name, scenario in SCENARIOS.items()}
    for name, scenario in SCENARIOS.items():
        for request in scenario.requests:
            _, alone = play(scenario, only=request)
            assert answers_of(played[name][1])[request] == answers_of(alone)[request]
    stats = {name: engine.stats() for name, (engine, _) in played.items()}
    assert stats["sent back to wait"]["preemptions"] > 0
    assert stats["drafts and shared pages"]["accepted_tokens"] > 20
    assert stats["drafts and shared pages"]["prefix_hits"] > 0
    reasons = {last.finish_reason for _, found in played.values() for _, _, last in found.values()}
    assert reasons == {"stop", "length"}


def test_the_calls_of_a_step_are_found():
    names = {site[0].co_name for _, _, site, _ in faults("call")}
    assert names > {"make_batch", "_preempt", "propose", "page_key", "sampling_row", "_choose_one"}
    assert names > {"push", "decode", "update", "token_logprobs", "finish", "end", "output_of"}


@pytest.mark.parametrize("quarter", range(4))
def test_a_call_that_raises_for_one_request_ends_that_one_alone(quarter, quiet):
    for i, (scenario, expected, site, count) in enumerate(faults("call")):
        if i % 4 == quarter:
            # From its first time on, or from the middle of an answer on.
            assert check_fault(scenario, expected, site, first=count // 2 if i // 4 % 2 else 0)


@pytest.mark.slow
def test_a_line_that_raises_for_one_request_ends_that_one_alone(quiet):
    for scenario, expected, site, count in faults("line"):
        assert check_fault(scenario, expected, site, first=count // 2)


def fault_in(scenario, function):
    _, found = play(scenario)
    site = (function.__code__, "call", function.__code__.co_firstlineno)
    return check_fault(scenario, answers_of(found), site, first=0)


def test_a_step_that_does_not_tell_rows_apart_is_found_out(quiet, monkeypatch):
    scenario = SCENARIOS["everything"]
    assert fault_in(scenario, choosing.sampling_row)
    monkeypatch.setattr(choosing, "_read_alone", lambda logits, row: RuntimeError("whoever"))
    with pytest.raises(AssertionError):
        fault_in(scenario, choosing.sampling_row)


def test_pages_that_are_not_accounted_for_anew_are_found_out(quiet, monkeypatch):
    scenario = SCENARIOS["sent back to wait"]
    assert fault_in(scenario, BlockManager.extend)
    monkeypatch.setattr(BlockManager, "rebuild", lambda self, owners: None)
    with pytest.raises(RuntimeError, match="do not add up"):
        fault_in(scenario, BlockManager.extend)


def test_a_panic_in_the_tokenizer_ends_one_request(quiet):
    class PanicException(BaseException):
        """As pyo3 makes them: no ``Exception``."""

    engine = fake_engine()
    backend = engine.tokenizer.backend_tokenizer
    decode = backend.decode

    def panicking(token_ids, skip_special_tokens):
        if 77 in token_ids:
            raise PanicException("index out of bounds")
        return decode(token_ids, skip_special_tokens)

    tokenizer = types.SimpleNamespace(backend_tokenizer=types.SimpleNamespace(decode=panicking))
    engine._decode = token_decoder(tokenizer)
    with pytest.raises(RuntimeError, match="the tokenizer panicked: index"):
        engine.add_request("refused", [77], PLAIN)
    bias = replace(PLAIN, logit_bias={77: 100.0})
    engine.add_request("bad", [5], bias)
    engine.add_request("good", [5], PLAIN)
    last = {}
    while engine.has_unfinished():
        last |= {output.request_id: output for output in engine.step()}
        engine.check_integrity()
    assert last["bad"].error == "the step failed: RuntimeError: the tokenizer panicked: " + (
        "index out of bounds"
    )
    assert last["good"].finish_reason == "length"


EOS_IDS = [[10**9], [-1], [2.0], [EOS, -1, 10**9], ["</s>"], [None]]


@pytest.mark.parametrize("eos", EOS_IDS)
def test_end_of_sequence_ids_that_no_token_has_end_and_mask_nothing(eos):
    def answers(eos):
        runner = FakeRunner()
        runner.eos_token_ids = eos
        engine = fake_engine(runner=runner)
        for name, seed in (("a", 1), ("b", 2)):
            params = SamplingParams(max_tokens=60, min_tokens=40, temperature=1.0, seed=seed)
            engine.add_request(name, [5], params)
        found = {}
        while engine.has_unfinished():
            for output in engine.step():
                found.setdefault(output.request_id, []).extend(output.token_ids)
                assert output.finish_reason != "error", output.error
        return found

    assert answers(eos) == answers([token for token in eos if token == EOS])
