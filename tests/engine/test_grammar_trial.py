"""Grammars that would compile for minutes, hours or for ever: ended, named, and nothing left."""

from __future__ import annotations

import gc
import json
import os
import signal

import pytest
from constrained import ascii_engine

from detinfer.engine import trial
from detinfer.engine.grammars import NICE
from detinfer.errors import RequestError
from detinfer.params import SamplingParams

# Each within the bounds of its size, and beyond all patience.
ENDLESS = {
    "names that have to be told apart": {
        "json_schema": json.dumps(
            {
                "type": "object",
                "patternProperties": {
                    f"^k{i}[a-z]+$": {"type": "string"} for i in range(1000)
                },
            }
        )
    },
    "patterns at once": {
        "json_schema": json.dumps(
            {
                "type": "string",
                "allOf": [{"pattern": f".*{chr(97 + i % 26)}.{{{i}}}x"} for i in range(1000)],
            }
        )
    },
    "terminals at once": {
        "grammar": "start: A\nA: "
        + " & ".join(f"/.*{chr(97 + i % 26)}.{{{i % 60}}}x.*/" for i in range(1500))
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return ascii_engine()


def ask(engine, **constraint):
    engine.add_request("a", [72], SamplingParams(max_tokens=2, **constraint))
    engine.abort("a")


def tried_by(engine):
    return engine._grammars._trial._process


@pytest.mark.parametrize("case", ENDLESS)
def test_what_compiles_without_an_end_is_ended_by_its_work(engine, case):
    ask(engine, regex=f"[a-z]{{1,{len(case)}}}")
    process = tried_by(engine)
    [field] = ENDLESS[case]
    with pytest.raises(RequestError, match=r"takes more than 0\.7 s of work to") as refused:
        ask(engine, **ENDLESS[case])
    assert refused.value.param == field
    assert str(refused.value).startswith(f"{field}: ")
    assert not engine.has_unfinished()
    engine.check_integrity()
    assert process.returncode == -signal.SIGPROF
    assert process.stdin.closed
    assert process.stdout.closed
    ask(engine, regex=f"[0-9]{{1,{len(case)}}}")  # by the next one
    assert tried_by(engine).pid != process.pid


def test_a_compiler_that_breaks_is_told_and_replaced(engine):
    ask(engine, regex="[a-z]")
    os.kill(tried_by(engine).pid, signal.SIGKILL)
    with pytest.raises(RequestError, match="regex: got one that the compiler breaks at"):
        ask(engine, regex="[0-9]")
    ask(engine, regex="[0-9]")


def test_work_is_counted_for_each_grammar_anew():
    one = trial.Trial(*known())
    for number in range(12):  # more work together than one may take
        schema = {"enum": [f"{number} {i}" for i in range(4000)]}
        assert one.rules("json_schema", json.dumps(schema))


def test_the_process_goes_with_its_engine():
    one = ascii_engine()
    ask(one, regex="a")
    process = tried_by(one)
    assert process.poll() is None
    del one
    gc.collect()
    assert process.wait(10) is not None


def test_its_priority_is_below_the_steps_and_signals_of_the_terminal_pass_it_by(engine):
    """Among sessions the scheduler shares time evenly, whatever the priorities within them."""
    ask(engine, regex="q")
    process = tried_by(engine)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == NICE
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.getpgid(process.pid) != os.getpgid(0)


def test_a_prepared_engine_has_its_table_before_the_first_grammar(monkeypatch):
    """And so no step waits for it: making it lets no other thread run."""
    made = []
    real = trial.make_table
    monkeypatch.setattr(
        "detinfer.engine.grammars.make_table", lambda *known: made.append(1) or real(*known)
    )
    one = ascii_engine()
    assert not made
    one.prepare()
    assert made == [1]
    ask(one, regex="a")
    assert made == [1]


def test_a_tokenizer_without_a_table_is_no_reason_not_to_start():
    one = ascii_engine()
    one._grammars._backend = None
    one.prepare()
    with pytest.raises(RequestError, match="regex: "):
        ask(one, regex="a")


def known():
    engine = ascii_engine()
    return engine.tokenizer.backend_tokenizer.to_str(), engine.info.vocab_size, [2]
