"""Thousands of requests, many of whom nobody waits for: nothing is lost or left behind."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path

import pytest
from drawn_requests import request
from fuzzer import World
from tiny_runner import make_tiny_engine

from detinfer.config import EngineConfig
from detinfer.engine.async_engine import AsyncEngine

CLIENTS = 24
NUMBERS = (*range(0, 300, 2), *range(1, 30, 2))  # the odd ones are fast
GROWTH_MIB = 8.0


def resident(pid):
    """MiB of a process in main memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


class Soak:
    """Clients of one engine process.

    Attributes:
        whole: deterministic answers that were compared.
        left: requests whose client went away before their end.
        memory: MiB of the engine's process and of this one, at each hundredth of the run.
    """

    def __init__(self, engine, requests):
        self.engine, self.requests = engine, requests
        self.world = World()
        self.made = self.whole = self.left = 0
        self.memory = []

    async def client(self, name):
        rng = random.Random(name)
        while self.made < self.requests:
            self.made += 1
            if self.made % (self.requests // 100) == 0:
                self.memory.append(resident(self.engine.pid))
            await self.ask(f"{name}-{self.made}", rng.choice(NUMBERS), rng)

    async def ask(self, request_id, number, rng):
        drawn = request(number)
        patience = rng.choice([None, None, None, rng.randrange(30)])  # outputs until it goes away
        ids, digest = [], None
        stream = self.engine.generate(drawn.prompt, drawn.params, request_id)
        async with aclosing(stream):
            if patience == 0:  # gone as soon as it has asked
                first = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                first.cancel()
                await asyncio.wait((first,))
                self.left += 1
                return
            async for output in stream:
                ids += output.token_ids
                digest = output.digest
                if output.completion_tokens == patience and output.finish_reason is None:
                    self.left += 1
                    return
        assert output.finish_reason in ("stop", "length"), output
        if drawn.params.deterministic:
            alone = self.world.alone(number)
            assert (ids, digest) == (alone.token_ids, alone.digest), number
            self.whole += 1

    def growth(self):
        """MiB, from the second quarter of the run to the last."""
        quarter = len(self.memory) // 4
        return max(self.memory[-quarter:]) - max(self.memory[quarter : 2 * quarter])


async def soak(requests):
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=300)
    engine = await AsyncEngine.start(config, max_queue_size=64, factory=make_tiny_engine)
    try:
        run = Soak(engine, requests)
        await asyncio.gather(*(run.client(f"client-{i}") for i in range(CLIENTS)))
        async with asyncio.timeout(30):
            while (stats := await engine.stats())["running"] or stats["waiting"] or stats["open"]:
                await asyncio.sleep(0.05)
        return run, stats
    finally:
        await engine.shutdown(5)


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing_behind():
    run, stats = asyncio.run(soak(10_000))
    print(f"{run.whole} compared, {run.left} abandoned, grew {run.growth():.2f} MiB, {stats}")
    assert run.made >= 10_000
    assert run.whole > 5_000
    assert run.left > 1_000
    assert stats["preemptions"] > 500
    assert stats["free_pages"] == stats["num_pages"] == 8
    assert run.growth() < GROWTH_MIB, run.memory
