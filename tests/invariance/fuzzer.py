"""A metamorphic fuzzer: whatever happens around a request, it gets what it gets alone.

An episode is a list of operations on the real engine over a real tiny model: requests come and go,
limits, pages, threads and the prefix cache change under them, in a pool too small for them all.
The list is drawn from one integer and is plain data, so a failing episode is run again with
operations left out until no more can be.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from constrained import AsciiRunner
from drawn_requests import POPULATION, constrained, request
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine

POOL = 8  # pages, where requests take one to four each
OPERATIONS = 300  # of an episode
ROOMY = (10, 300, None, 32)  # limits under which an episode ends
STEPS_TO_DRAIN = 5000  # more than any backlog needs

WEIGHTS = {
    "step": 68,
    "add": 16,
    "abort": 8,
    "limits": 5,
    "shuffle": 4,
    "threads": 2,
    "forget": 1,
}
COUNTED = ("preemptions", "evictions", "prefix_hits", "accepted_tokens")


class Difference(AssertionError):
    """A request got something else than it gets alone."""


class Failure(AssertionError):
    """An episode that failed: its seed, what is left of it after shrinking, and why."""

    def __init__(self, seed, operations, error):
        self.seed, self.operations, self.error = seed, operations, error
        listed = "\n".join(f"    {operation!r}," for operation in operations)
        super().__init__(
            f"episode {seed}: {type(error).__name__}: {error}\nrun_episode(World(), [\n{listed}\n])"
        )


@dataclass
class Answer:
    """All that a request got."""

    token_ids: list = field(default_factory=list)
    text: str = ""
    logprobs: list = field(default_factory=list)
    prompt_logprobs: list = field(default_factory=list)
    finish_reason: str | None = None
    digest: str | None = None

    def add(self, output):
        assert self.finish_reason is None, f"{output.request_id} goes on after its end"
        self.token_ids += output.token_ids
        self.text += output.text
        self.logprobs += output.logprobs or []
        self.prompt_logprobs += output.prompt_logprobs or []
        self.finish_reason, self.digest = output.finish_reason, output.digest
        assert output.completion_tokens == len(self.token_ids), "increments do not add up"


class World:
    """The runner under load, and what every request gets alone.

    Args:
        plan: of the model: ``fused``, or ``modules``, whose ops a test can replace.
        model: of ``tiny_runner.MODELS``.
        faults: share of operations after which a step fails.
        kv_cache_dtype: of the pages.
        grammars: whether some requests have one.
    """

    def __init__(
        self,
        plan="fused",
        model="windowed",
        faults=0.0,
        kv_cache_dtype="float32",
        grammars=False,
    ):
        self.faults = faults
        self.request = constrained if grammars else request
        runner = AsciiRunner if grammars else TinyModelRunner
        options = {"model": model, "kv_cache_dtype": kv_cache_dtype}
        self.runner = runner(num_pages=POOL, plan=plan, **options)
        self._alone = runner(num_pages=4, plan=plan, **options)
        self._answers = {}

    def alone(self, number):
        """The answer of a request that is the only one of a plain engine."""
        if number not in self._answers:
            config = EngineConfig(prefix_caching=False, speculation=False)
            engine, answer = Engine(config, self._alone), Answer()
            asked = self.request(number)
            engine.add_request("alone", asked.prompt, asked.params)
            while engine.has_unfinished():
                for output in engine.step():
                    answer.add(output)
            self._answers[number] = answer
        return self._answers[number]


class Episode:
    """An engine under load; each method below ``counts`` is an operation by its name."""

    def __init__(self, world):
        self.world, self.runner = world, world.runner
        self.runner.spoil(range(POOL))
        self.runner.threads, self.runner.split_chunks, self.runner.failing = 1, 0, None
        self.engine = Engine(EngineConfig(), self.runner)
        self.limits(*ROOMY)
        self.live = {}  # request id -> its number in the population and its answer so far
        self._counts = Counter()

    def counts(self):
        """What happened so far."""
        stats = self.engine.stats()
        found = {name: stats[name] for name in COUNTED}
        return self._counts + Counter(found, split_chunks=self.runner.split_chunks)

    def add(self, name, number):
        asked = self.world.request(number)
        self.engine.add_request(name, asked.prompt, asked.params)
        self.live[name] = number, Answer()

    def abort(self, name):
        last = self.engine.abort(name)
        assert (last is not None) == (name in self.live)
        if last is not None:
            self._counts["aborts"] += 1
            self._take(last)

    def step(self):
        before = self.engine.stats()
        outputs = self.engine.step()
        self.runner.threads = 1
        grown = Counter(self.engine.stats())
        grown.subtract(before)
        self._counts["steps"] += grown["steps"]
        # A lower bound: drafts of which a token was rejected, at most one a step.
        self._counts["rejected_drafts"] += grown["drafted_tokens"] > grown["accepted_tokens"]
        for output in outputs:
            self._take(output)

    def limits(self, max_num_seqs, max_num_batched_tokens, max_chunk, max_with_drafts):
        limits = self.engine.scheduler.limits
        limits.max_num_seqs = max_num_seqs
        limits.max_num_batched_tokens = max_num_batched_tokens
        limits.max_chunk = max_chunk
        limits.max_with_drafts = max_with_drafts

    def shuffle(self, seed):
        """Free pages change places, and what they held is lost."""
        self.engine.block_manager.shuffle(random.Random(seed))
        self.runner.spoil(self.engine.block_manager._free)

    def threads(self, count):
        """Of the next step alone: two threads that share a busy core wait for each other."""
        self.runner.threads = count

    def forget(self):
        self.engine.block_manager.forget()

    def fail(self, when):
        """The next step fails: those in it end with an error, and leave nothing wrong behind."""
        self.runner.failing = when

    def drain(self):
        """Steps until all have ended; nothing may be left behind."""
        self.limits(*ROOMY)
        for _ in range(STEPS_TO_DRAIN):
            if not self.engine.has_unfinished():
                break
            self.step()
            self.engine.check_integrity()
        assert not self.live, f"without an end: {sorted(self.live)}"
        assert not self.engine.has_unfinished()
        free = self.engine.block_manager.num_free
        assert free == POOL, f"{free} of {POOL} pages are free at the end"

    def _take(self, output):
        number, answer = self.live[output.request_id]
        answer.add(output)
        if answer.finish_reason is None:
            return
        del self.live[output.request_id]
        if answer.finish_reason == "error" and "injected fault" in output.error:
            self._counts["failed"] += 1
            return
        if answer.finish_reason == "error":
            raise Difference(f"request {number} ended with an error: {output.error}")
        if self.world.request(number).params.deterministic and answer.finish_reason != "abort":
            self._counts["compared"] += 1
            compare(number, answer, self.world.alone(number))


def compare(number, got, alone):
    """Raises ``Difference`` with the first one."""
    for name in ("prompt_logprobs", "token_ids", "logprobs"):
        pairs = zip(getattr(got, name), getattr(alone, name), strict=False)
        for i, (ours, theirs) in enumerate(pairs):
            if ours != theirs:
                raise Difference(
                    f"request {number}: {name}[{i}] is {ours!r} under load and {theirs!r} alone"
                )
    if got != alone:
        raise Difference(f"request {number}: {got} under load and {alone} alone")


def draw_operations(seed):
    """The operations of an episode."""
    rng = random.Random(seed)
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=OPERATIONS)
    fast = rng.choice([0.0, 0.1, 0.1, 0.6])  # share of fast requests
    operations, added = [], []
    for name in names:
        arguments = ()
        if name == "add":
            # Half of them are there already: the same request beside itself and after itself.
            number = 2 * rng.randrange(POPULATION // 2) + (rng.random() < fast)
            number = rng.choice([number, *added[-1:]])
            arguments = (f"r{len(added)}", number)
            added.append(number)
        elif name == "abort":  # of the latest, or of one that will have ended, or never was
            latest = len(added) - 1 - rng.choice([0, 1, 2, rng.randrange(40)])
            arguments = (f"r{latest}",)
        elif name == "limits":
            arguments = (
                rng.randint(2, 10),
                rng.choice([1, 16, 64, 65, 130, 300, 300]),
                rng.choice([None, None, None, rng.randint(1, 130)]),
                rng.choice([0, 8, 16, 64]),
            )
        elif name == "shuffle":
            arguments = (rng.randrange(1 << 30),)
        elif name == "threads":
            arguments = (2,)
        operations.append((name, *arguments))
    return operations


def with_faults(operations, share, seed):
    """The same operations, some of them followed by a step that fails."""
    rng = random.Random(f"faults of {seed}")
    mixed = []
    for operation in operations:
        mixed.append(operation)
        if rng.random() < share:
            mixed += [("fail", rng.choice(["before", "after"])), ("step",)]
    return mixed


def run_episode(world, operations):
    """Runs operations and drains the engine; returns the counts, or raises what went wrong."""
    episode = Episode(world)
    for name, *arguments in operations:
        getattr(episode, name)(*arguments)
        episode.engine.check_integrity()
    episode.drain()
    return episode.counts()


def fuzz(world, steps, seed=0, shrinking=True, progress=lambda counts: None):
    """Runs episodes of ``seed``, ``seed`` + 1, … until they come to ``steps`` engine steps.

    Returns:
        The counts of them all.

    Raises:
        Failure: the first episode that fails, shrunk unless ``shrinking`` is off.
    """
    total = Counter()
    while total["steps"] < steps:
        operations = with_faults(draw_operations(seed), world.faults, seed)
        try:
            total += run_episode(world, operations)
        except Exception as error:
            raise failure(world, seed, operations, error, shrinking) from error
        total["episodes"] += 1
        seed += 1
        progress(total)
    return total


def failure(world, seed, operations, error, shrinking):
    """What to report of a failed episode: the shortest list that fails in the same way."""

    def error_of(candidate):
        try:
            run_episode(world, candidate)
        except Exception as found:
            return found
        return None

    if shrinking:
        operations = shrink(operations, lambda some: isinstance(error_of(some), type(error)))
        error = error_of(operations) or error  # a fault that comes and goes keeps its first words
    return Failure(seed, operations, error)


def shrink(operations, fails, tries=300):
    """Leaves out operations, long runs of them first, as long as the rest fails.

    After Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002.
    """
    size = len(operations) // 2
    while size:
        at = 0
        while at < len(operations) and tries:
            tries -= 1
            shorter = operations[:at] + operations[at + size :]
            if fails(shorter):
                operations = shorter
            else:
                at += size
        size //= 2
    return operations
