"""The engine in its own process: streams, limits, aborts, draining, and every way to die."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import fake_runner
import pytest
from constrained import PERSON, make_slow_compiling_engine
from fake_runner import fake_engine
from tiny_runner import TinyModelRunner, make_tiny_engine

from detinfer.config import EngineConfig
from detinfer.engine import streams
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.engine import Engine
from detinfer.engine.llm import LLM
from detinfer.errors import (
    EngineDeadError,
    GenerationTimeoutError,
    ModelLoadError,
    QueueFullError,
    RequestError,
)
from detinfer.params import PoolingParams, SamplingParams

LONG = SamplingParams(max_tokens=300, ignore_eos=True)


@asynccontextmanager
async def started(factory=fake_runner.make_engine, queue=8, **options):
    config = EngineConfig(max_num_seqs=4)
    engine = await AsyncEngine.start(config, queue, factory=factory, load_timeout=60, **options)
    try:
        yield engine
    finally:
        await engine.shutdown(0)
        assert engine.state == "dead"


async def collect(engine, prompt, params, request_id):
    return [output async for output in engine.generate(prompt, params, request_id)]


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(90):
            return await coroutine

    return asyncio.run(bounded())


def test_a_given_answer_takes_few_steps_and_is_the_same():
    async def both():
        async with started() as engine:
            plain = await collect(engine, [1, 2], LONG, "plain")
            ids = [token for output in plain for token in output.token_ids]
            outputs = engine.generate([1, 2], LONG, "given", answer=ids)
            given = [output async for output in outputs]
            with pytest.raises(RequestError, match="answer: got token id 9999"):
                await anext(engine.generate([1, 2], LONG, "wrong", answer=[9999]))
            return plain, given

    plain, given = run(both())
    assert plain[-1].digest == given[-1].digest
    assert len(given) < len(plain) / 5


def expected(prompt, params):
    engine = fake_engine()
    engine.add_request("x", prompt, params)
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    return outputs


def test_streams_equal_the_engine_in_process():
    async def main():
        async with started() as engine:
            assert engine.info == fake_engine(EngineConfig(max_num_seqs=4)).info
            assert engine.tokenizer.encode("ab") == [64, 65]
            params = [
                SamplingParams(max_tokens=n, temperature=n % 2, seed=n, logprobs=n % 3 or None)
                for n in range(1, 11)
            ]
            got = await asyncio.gather(
                *(collect(engine, [i, 7], p, f"r{i}") for i, p in enumerate(params))
            )
            stats = await engine.stats()
        for i, (outputs, p) in enumerate(zip(got, params, strict=True)):
            want = expected([i, 7], p)
            for output in want:
                output.request_id = f"r{i}"
            assert outputs == want
        assert stats["running"] == stats["waiting"] == stats["open"] == 0
        assert stats["free_pages"] == stats["num_pages"]
        assert stats["generated_tokens"] == sum(len(o.token_ids) for outs in got for o in outs)

    run(main())


def test_a_vector_of_another_process_has_the_bits_of_one_in_process():
    prompts, params = [[5, 6, 7], [8] * 90], PoolingParams(dimensions=16)

    async def main():
        async with started(make_tiny_engine) as engine:
            tasks = [collect(engine, ids, params, f"v{i}") for i, ids in enumerate(prompts)]
            outputs = [output for [output] in await asyncio.gather(*tasks)]
            with pytest.raises(RequestError, match="dimensions: got 65") as refusal:
                await collect(engine, [5], PoolingParams(dimensions=65), "wide")
            assert refusal.value.param == "dimensions"
            return outputs

    outputs = run(main())
    own = LLM(engine=Engine(EngineConfig(), TinyModelRunner(num_pages=8)))
    expected = own.embed(prompts, dimensions=16)
    assert [one.digest for one in outputs] == [one.digest for one in expected]
    assert [one.embedding for one in outputs] == [one.vector.tobytes() for one in expected]


def test_refusals_leave_the_others_alone():
    async def main():
        async with started(queue=1) as engine:
            tasks = [asyncio.create_task(collect(engine, [i], LONG, f"r{i}")) for i in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="5 requests are open, at most 5"):
                await collect(engine, [1], LONG, "sixth")
            with pytest.raises(RequestError, match="'r0' is in use") as refusal:
                await collect(engine, [1], LONG, "r0")
            assert refusal.value.param == "request_id"
            with pytest.raises(RequestError, match="got token id 97") as refusal:
                await collect(engine, [97], LONG, "bad")
            assert refusal.value.param == "prompt"
            for outputs in await asyncio.gather(*tasks):
                assert outputs[-1].finish_reason == "length"

    run(main())


def test_time_is_counted_from_a_requests_first_step_not_while_it_waits():
    endless = SamplingParams(max_tokens=399, ignore_eos=True)  # 8 s of steps, at least

    async def main():
        config = EngineConfig(max_num_seqs=1)
        engine = await AsyncEngine.start(
            config, 8, factory=fake_runner.make_slow_engine, generation_timeout=1
        )
        ended = []

        async def ask(name, params):
            tokens = 0
            try:
                async for output in engine.generate([1], params, name):
                    tokens += len(output.token_ids)
            except GenerationTimeoutError as error:
                ended.append((name, tokens, str(error)))
            else:
                ended.append((name, tokens, output.finish_reason))

        # One after the other: the last one waits longer than any may take.
        names = ["a", "b", "c"]
        last = ask("d", SamplingParams(max_tokens=2, ignore_eos=True))
        await asyncio.gather(*(ask(name, endless) for name in names), last)
        assert [(name, reason) for name, _, reason in ended] == [
            *((name, "the answer took more than 1 s") for name in names),
            ("d", "length"),
        ]
        assert all(tokens > 0 for _, tokens, _ in ended)
        while (stats := await engine.stats())["running"]:
            await asyncio.sleep(0.01)
        assert stats["free_pages"] == stats["num_pages"]
        await engine.shutdown(0)

    run(main())


def test_prompt_tokens_of_open_requests_are_bounded_together(monkeypatch):
    monkeypatch.setattr(streams, "MAX_OPEN_TOKENS", 10)

    async def main():
        async with started(fake_runner.make_slow_engine) as engine:
            prompt = [1, 2, 3, 4, 5]
            tasks = [asyncio.create_task(collect(engine, prompt, LONG, name)) for name in "ab"]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="10 prompt tokens are open, 1 more make more"):
                await collect(engine, [1], LONG, "c")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            short = SamplingParams(max_tokens=1)
            assert len(await collect(engine, prompt * 2, short, "d")) == 1  # all are given back

    run(main())


def test_closing_and_cancelling_abort():
    async def main():
        async with started(fake_runner.make_slow_engine) as engine:
            async with aclosing(engine.generate([1], LONG, "closed")) as stream:
                await anext(stream)
            task = asyncio.create_task(collect(engine, [2], LONG, "cancelled"))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await engine.stats())["open"] == 0
            for _ in range(200):
                stats = await engine.stats()
                if stats["running"] == stats["waiting"] == 0:
                    break
                await asyncio.sleep(0.01)
            assert stats["free_pages"] == stats["num_pages"]
            assert stats["generated_tokens"] < 600
            # The ids are free again, and the engine serves on.
            assert len(await collect(engine, [1], SamplingParams(max_tokens=2), "closed")) == 2

    run(main())


def test_shutdown_lets_requests_finish():
    async def main():
        async with started() as engine:
            task = asyncio.create_task(collect(engine, [1], LONG, "r"))
            await asyncio.sleep(0.05)
            stop = asyncio.create_task(engine.shutdown(30))
            await asyncio.sleep(0)
            assert engine.state == "draining"
            with pytest.raises(EngineDeadError, match="shutting down"):
                await collect(engine, [1], LONG, "late")
            outputs = await task
            assert outputs[-1].finish_reason == "length"
            await stop

    run(main())


def test_shutdown_ends_what_does_not_finish_in_time():
    async def main():
        async with started(fake_runner.make_slow_engine) as engine:
            tasks = [asyncio.create_task(collect(engine, [i], LONG, f"r{i}")) for i in range(6)]
            await asyncio.sleep(0.3)
            await engine.shutdown(0.1)
            for outputs in await asyncio.gather(*tasks):
                last = outputs[-1]
                assert last.finish_reason == "abort"
                assert last.error == "the server is shutting down"
                assert last.digest is not None
                assert last.completion_tokens == sum(len(o.token_ids) for o in outputs) < 300

    run(main())


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (fake_runner.make_engine_that_cannot_load, ModelLoadError, "^model: no such folder$"),
        (fake_runner.make_engine_with_odd_error, ModelLoadError, "ZeroDivisionError: unexpected"),
        (fake_runner.die_while_loading, EngineDeadError, r"exit code 3"),
        (fake_runner.make_unreadable_engine, EngineDeadError, "cut off: ValueError"),
    ],
)
def test_load_errors_are_raised_as_themselves(factory, error, message):
    with pytest.raises(error, match=message):
        run(AsyncEngine.start(EngineConfig(), 8, factory=factory, load_timeout=60))


def test_a_load_that_hangs_is_given_up():
    start = AsyncEngine.start(
        EngineConfig(), 8, factory=fake_runner.hang_while_loading, load_timeout=1
    )
    with pytest.raises(EngineDeadError, match="did not load in 1 s"):
        run(start)


def check_dead(engine, tasks, results, message):
    assert len(results) == len(tasks)
    for result in results:
        assert isinstance(result, EngineDeadError)
        assert message in str(result)
    assert engine.state == "dead"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (fake_runner.make_dying_engine, "exit code 7"),
        (fake_runner.make_broken_engine, "the engine failed: RuntimeError: pages are gone"),
        (fake_runner.make_hanging_engine, "did not end a step in 1 s"),
    ],
)
def test_when_the_engine_dies_every_request_ends(factory, message):
    async def main():
        async with started(factory, step_timeout=1) as engine:
            tasks = [asyncio.create_task(collect(engine, [i], LONG, f"r{i}")) for i in range(6)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            check_dead(engine, tasks, results, message)
            with pytest.raises(EngineDeadError, match=message):
                await collect(engine, [1], LONG, "late")
            assert (await engine.stats())["open"] == 0

    run(main())


def test_killed_from_outside():
    async def main():
        async with started() as engine:
            task = asyncio.create_task(collect(engine, [1], LONG, "r"))
            await asyncio.sleep(0.02)
            os.kill(engine.pid, signal.SIGKILL)
            results = await asyncio.gather(task, return_exceptions=True)
            check_dead(engine, [task], results, "was ended by SIGKILL, as a system does that runs")
            assert (await engine.ended()).startswith("the engine process was ended by SIGKILL")
            stats = await engine.stats()
            assert stats["running"] == stats["waiting"] == 0
            assert stats["free_pages"] == stats.get("num_pages", 0)

    run(main())


def test_signals_to_the_group_are_the_parents_to_handle():
    async def main():
        async with started() as engine:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(engine.pid, number)
            assert len(await collect(engine, [1], SamplingParams(max_tokens=3), "r")) == 3

    run(main())


ORPHAN = """
import asyncio, os
import fake_runner
from detinfer.config import EngineConfig
from detinfer.engine.async_engine import AsyncEngine

async def main():
    engine = await AsyncEngine.start(EngineConfig(), 8, factory=fake_runner.make_engine)
    print(engine.pid, flush=True)
    {end}

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "return", "raise KeyboardInterrupt"])
def test_the_engine_does_not_outlive_its_parent(end, tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN.format(end=end))
    path = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists(), done.stderr


def test_one_message_a_step_whatever_the_number_of_streams():
    async def main():
        async with started() as engine:
            delivered = []
            engine.on_step = delivered.append
            params = SamplingParams(max_tokens=20, ignore_eos=True)
            await asyncio.gather(*(collect(engine, [i], params, f"r{i}") for i in range(4)))
            # Requests may arrive while a step runs: a few steps more than one request needs.
            assert 20 <= len(delivered) <= 30

    run(main())


def test_steps_go_on_while_a_grammar_compiles():
    """One that takes half a second; its request is refused, aborted or answered meanwhile."""

    async def scene():
        async with started(make_slow_compiling_engine) as engine:
            bound = SamplingParams(max_tokens=60, json_schema=PERSON)
            free = SamplingParams(max_tokens=200, ignore_eos=True)
            marks = {}

            async def timed(name, params):
                marks[name] = [time.monotonic()]
                async for _ in engine.generate([72, 73], params, name):
                    marks[name].append(time.monotonic())

            gone = asyncio.create_task(timed("gone", SamplingParams(json_schema=True)))
            await asyncio.sleep(0.1)
            gone.cancel()
            with pytest.raises(RequestError, match=r"^regex: ") as refused:
                await timed("refused", SamplingParams(regex="("))
            assert refused.value.param == "regex"
            await asyncio.gather(timed("bound", bound), timed("free", free))
            while (await engine.stats())["open"]:
                await asyncio.sleep(0.01)
            return marks

    marks = run(scene())
    during = [at for at in marks["free"] if marks["bound"][0] < at < marks["bound"][1]]
    assert marks["bound"][1] - marks["bound"][0] > 0.4
    assert len(during) > 100
