"""A server under more clients than it can serve at once, some of whom hang up or send garbage.

    python -m benchmarks.server_load --json benchmarks/results/server_load.json

Every request of the load was answered once alone before it; each whole deterministic answer under
load must have the digest it had then. Exit status 1 on a difference, a status of 500 or more, a
page or request left behind, or memory that grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shlex
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.http_client import exchange, post, post_bytes
from benchmarks.serving import Server, serving

HANG_UP, GARBAGE, FAST = 0.20, 0.05, 0.10  # shares of the requests
POPULATION = 48
GROWTH_MIB = 64.0  # of memory, from the second quarter of the run to its end
WORDS = ("the", "a", "one", "city", "river", "light", "was", "is", "has", "in", "seven", "old")


def draw_request(number: int) -> dict[str, Any]:
    """Return a request of the population: short and long prompts, greedy and sampled."""
    rng = random.Random(f"server load {number}")
    length = rng.choice((4, 12, 30, 30, 90))
    body: dict[str, Any] = {
        "prompt": " ".join(rng.choice(WORDS) for _ in range(length)),
        "max_tokens": rng.choice((4, 8, 16, 32)),
        "ignore_eos": rng.random() < 0.8,
    }
    if rng.random() < 0.5:
        body |= {"temperature": 0.8, "top_p": 0.95, "seed": rng.getrandbits(32)}
    if rng.random() < 0.3:
        body["logprobs"] = rng.randint(0, 3)
    return body


def draw_garbage(rng: random.Random) -> bytes:
    """Return what no server should have to read."""
    body = json.dumps(draw_request(0)).encode()
    return rng.choice(
        (
            rng.randbytes(200) + b"\r\n\r\n",
            post_bytes("/generate", rng.randbytes(100)),
            post_bytes("/generate", body[: len(body) // 2]),
            post_bytes("/generate", body.replace(b'"max_tokens"', b'"max_tokenz"')),
            post_bytes("/generate", b'{"prompt": "a", "temperature": NaN}'),
            post_bytes("/generate", b"[" * 10_000),
            post_bytes("/nowhere", body),
            post_bytes("/generate", body)[: -len(body) // 2],  # half-sent, then a hang-up
        )
    )


@dataclass
class Load:
    """What many clients ask, and what they saw.

    Attributes:
        requests: how many to make at most.
        stop_at: monotonic time at which no more are made.
        seconds: from the first to the end of the last.
        alone: digests of the population, each answered alone.
        made: requests begun so far.
        faults: what should not have happened, a line each.
        memory: MiB, each second.
    """

    port: int
    requests: float
    stop_at: float = 0.0
    seconds: float = 0.0
    alone: list[str] = field(default_factory=list)
    made: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    async def ask_alone(self) -> None:
        """Every request of the population, one after the other."""
        for number in range(POPULATION):
            async with post(self.port, "/generate", draw_request(number)) as response:
                assert response.status == 200, await response.json()
                self.alone.append((await response.json())["digest"])

    def growth(self) -> float:
        """MiB, from the most of the second quarter of the run to the most of the last."""
        quarter = len(self.memory) // 4
        if not quarter:
            return 0.0
        return max(self.memory[-quarter:]) - max(self.memory[quarter : 2 * quarter])

    async def client(self, name: int) -> None:
        """Ask until it is time to stop."""
        rng = random.Random(f"client {name}")
        while self.made < self.requests and time.monotonic() < self.stop_at:
            self.made += 1
            try:
                if rng.random() < GARBAGE:
                    await self._send_garbage(rng)
                else:
                    await self._ask(rng)
            except (TimeoutError, ConnectionError) as error:
                self.seen[type(error).__name__] += 1
                self.faults.append(f"{type(error).__name__}: {error}")

    async def _ask(self, rng: random.Random) -> None:
        number = rng.randrange(POPULATION)
        body = draw_request(number) | {"stream": rng.random() < 0.8}
        if fast := rng.random() < FAST:
            body["deterministic"] = False
        patience = rng.uniform(0.0, 3.0) if rng.random() < HANG_UP else None
        while True:
            try:
                async with asyncio.timeout(patience):
                    wait, digest = await self._answer(body)
            except TimeoutError:
                self.seen["hung up"] += 1
                return
            if wait is None:
                break
            await asyncio.sleep(wait)
        self.seen["fast" if fast else "deterministic"] += digest is not None
        if digest is not None and not fast and digest != self.alone[number]:
            self.faults.append(f"request {number}: {digest}, alone {self.alone[number]}")

    async def _answer(self, body: dict[str, Any]) -> tuple[float | None, str | None]:
        """Seconds to wait before asking again, or None; and the digest of a whole answer."""
        start = time.perf_counter()
        async with post(self.port, "/generate", body) as response:
            self.seen[str(response.status)] += 1
            if response.status == 429:
                return float(response.headers["retry-after"]), None
            if response.status != 200:
                self.faults.append(f"{response.status}: {await response.json()}")
                return None, None
            if not body["stream"]:
                return None, (await response.json())["digest"]
            last, before = {}, 0.0
            async for last in response.events():
                now = time.perf_counter()
                if last.get("output_ids"):
                    if before:
                        self.between_tokens.append(now - before)
                    else:
                        self.first_token.append(now - start)
                    before = now
            if "digest" not in last:
                self.faults.append(f"a stream ended with {last}")
            return None, last.get("digest")

    async def _send_garbage(self, rng: random.Random) -> None:
        self.seen["garbage"] += 1
        try:
            async with (
                asyncio.timeout(rng.uniform(0.1, 2.0)),
                exchange(self.port, draw_garbage(rng)) as response,
            ):
                self.seen[str(response.status)] += 1
                if not 400 <= response.status < 500:
                    self.faults.append(f"garbage got {response.status}")
        except (TimeoutError, ConnectionError):
            self.seen["garbage cut off"] += 1


async def watch(server: Server, load: Load) -> None:
    """Say how far the load is, and keep the memory in use, each second."""
    start = time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        load.memory.append(server.memory())
        if len(load.memory) % 10 == 0:
            print(
                f"{time.monotonic() - start:.0f} s, {load.made} requests, "
                f"{load.memory[-1]:.0f} MiB, {len(load.faults)} faults",
                file=sys.stderr,
            )


async def run(server: Server, clients: int, seconds: float, requests: float) -> Load:
    """Return the load, from its first request to its last answer."""
    load = Load(server.port, requests)
    await load.ask_alone()
    start = time.monotonic()
    load.stop_at = start + seconds
    watcher = asyncio.create_task(watch(server, load))
    await asyncio.gather(*(load.client(name) for name in range(clients)))
    load.seconds = time.monotonic() - start
    watcher.cancel()
    return load


def judge(load: Load, stats: dict[str, int]) -> list[str]:
    """Return what is wrong, a line each."""
    faults = list(load.faults)
    left = {name: stats[name] for name in ("running", "waiting", "open") if stats[name]}
    if left or stats["free_pages"] != stats["num_pages"]:
        faults.append(f"left behind: {left}, {stats['free_pages']} of {stats['num_pages']} pages")
    growth = load.growth()
    if growth > GROWTH_MIB:
        faults.append(f"memory grew by {growth:.0f} MiB")
    if not load.seen["deterministic"]:
        faults.append("no deterministic answer was compared")
    return faults


def percentile(values: list[float], cut: int) -> float:
    """Return the value that ``cut`` per cent are not above."""
    return statistics.quantiles(values, n=100)[cut - 1] if len(values) > 1 else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder, .gguf file or hub id")
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=180.0, help="clients stop asking then")
    parser.add_argument("--requests", type=float, default=math.inf, help="or after so many")
    parser.add_argument("--serve", default="", help="flags of detinfer serve, in one string")
    args = parser.parse_args()
    with serving(args.model, "--no-access-log", *shlex.split(args.serve)) as server:
        before = server.stats()
        load = asyncio.run(run(server, args.clients, args.seconds, args.requests))
        stats = server.idle_stats()
    faults = judge(load, stats)
    did = ("steps", "preemptions", "evictions", "prefix_hits")
    times = {"time to first token": load.first_token, "between tokens": load.between_tokens}
    rows = [
        {"measure": "clients", "value": args.clients},
        {"measure": "seconds", "value": round(load.seconds, 1)},
        {"measure": "requests", "value": load.made},
        *({"measure": name, "value": load.seen[name]} for name in sorted(load.seen)),
        *({"measure": name, "value": stats[name] - before.get(name, 0)} for name in did),
        *(
            {"measure": f"{name}, p{cut}, ms", "value": round(1e3 * percentile(values, cut), 1)}
            for name, values in times.items()
            for cut in (50, 99)
        ),
        {"measure": "growth of memory, MiB", "value": round(load.growth(), 1)},
        {"measure": "faults", "value": len(faults)},
    ]
    extra = {"command": f"python -m benchmarks.server_load {shlex.join(sys.argv[1:])}"}
    report("a server under load", rows, {**extra, "faults": faults[:20]}, args.json)
    print(*faults[:20], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
