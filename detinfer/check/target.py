"""The requests whose answers are compared."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.params import SamplingParams
from detinfer.recursive.params import SolveParams

Prompt = str | tuple[int, ...]
Params = SamplingParams | SolveParams  # of a language model's engine, of a solver's


def sampling(params: Params) -> SamplingParams:
    """Return what a language model is asked for."""
    assert isinstance(params, SamplingParams)
    return params


def solving(params: Params) -> SolveParams:
    """Return what a solver is asked for."""
    assert isinstance(params, SolveParams)
    return params


@dataclass(frozen=True)
class Bounds:
    """What a load may ask of the system it is played on.

    Attributes:
        vocab_size: token ids of neighbours stay below it.
        longest: most tokens of one request, prompt and output together.
        max_rows: most requests in a load.
        allow_fast: whether neighbours may be fast.
        max_num_seqs: the engine's own limit; None if its limits are out of our hands.
        max_num_batched_tokens: as ``max_num_seqs``.
        num_pages: of its KV cache; None if they are out of our hands.
        threads: most threads of a step; None if they are out of our hands.
        can_spoil: whether free pages can be filled with NaN.
        can_restart: whether it can be made anew.
        can_constrain: whether answers may keep to a grammar.
        can_score: whether prompts can be scored.
        other_models: whether a puzzle may be another model's.
    """

    vocab_size: int
    longest: int
    max_rows: int
    allow_fast: bool
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_pages: int | None = None
    threads: int | None = None
    can_spoil: bool = False
    can_restart: bool = False
    can_constrain: bool = False
    can_score: bool = False
    other_models: bool = False


@dataclass(frozen=True)
class Target:
    """One request under test.

    Attributes:
        prompt: text, or token ids.
        params: its own parameters, of the kind that its engine takes; with a temperature they need
            a seed, or no two answers agree.
        name: what it is there for.
        share: its part of a check's runs, below 1 where each costs much.
    """

    prompt: Prompt
    params: Params
    name: str = ""
    share: float = 1.0

    @property
    def label(self) -> str:
        """Name and prompt on one line, cut to fit a table."""
        if isinstance(self.prompt, str):
            text = self.prompt
        elif len(self.prompt) > _FEW_IDS:
            text = f"{len(self.prompt):,} token ids"
        else:
            text = f"token ids {list(self.prompt)}"
        line = " ".join(f"{self.name}{': ' if self.name else ''}{text}".split())
        return line if len(line) <= 48 else f"{line[:47]}…"

    def runs_of(self, runs: int) -> int:
        """Return how often it runs in a check of ``runs``."""
        return max(1, round(runs * self.share))


_FEW_IDS = 16

_QUESTION = "Q: Why does the moon look larger close to the horizon?\nA:"

_CODE = '''def is_prime(n: int) -> bool:
    """Return whether n is a prime number."""
    if n < 2:
'''

_EMOJI = "Der Bäcker öffnet früh: 🥐 naïve café, 東京の朝, доброе утро! Heute gibt es"

_STORY = "The last train had left an hour ago, and the stationmaster was"

_HERO = "The hero of the story, as a JSON object:"

_HERO_SCHEMA = """{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["knight", "witch", "thief"]},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3}
    },
    "required": ["name", "age", "kind", "friends"],
    "additionalProperties": false
}"""

_REFRAIN = "Round and round and round it goes, and where it stops"

# Just under 128 tokens: the answer begins on one KV page and ends on the next.
_LIST = """Heights above the sea and years of opening of the stations of the northern line:
1. Harbour: 3 m, 1871
2. Old Market: 12 m, 1871
3. Mill Bridge: 27 m, 1874
4. Oakfield: 58 m, 1880
5. Quarry Road: 96 m, 1893
6. Upper Dale: 143 m, 1902
Passengers who ride from the first station to the last climb"""

_LONG = 2100  # tokens: more than four segments of 512 keys, and than 32 pages
_SCORED = 300  # tokens: more than are scored in a step
_COSTLY = 0.05  # share of the runs of what takes long
# Prompts that are shorter where the model's length or the KV cache is.
LENGTHS = {"long prompt": _LONG, "other beginning": _LONG, "scored prompt": _SCORED}


def default_targets(bounds: Bounds, max_tokens: int = 32) -> list[Target]:
    """One request for each thing that may go wrong alone (docs/determinism.md says which).

    Args:
        bounds: of what is to be checked; the long prompts are as long as it can serve.
        max_tokens: of each.
    """
    greedy = SamplingParams(max_tokens=max_tokens)
    sampled = replace(greedy, temperature=1.0, seed=20)
    schema = Target(_HERO, replace(sampled, json_schema=_HERO_SCHEMA, logprobs=1), "schema")
    return [
        Target(_QUESTION, replace(greedy, stop=(" This means",)), "stop string"),
        Target(_CODE, replace(greedy, logprobs=5), "log-probabilities"),
        Target(_LIST, greedy, "page end"),
        Target(_EMOJI, replace(sampled, temperature=0.8, top_k=50, top_p=0.95), "filters"),
        Target(_STORY, replace(sampled, logprobs=0), "temperature"),
        Target(_REFRAIN, _penalised(max_tokens, bounds.vocab_size), "penalties"),
        *([schema] if bounds.can_constrain else ()),
        *([_scored(max_tokens, bounds)] if bounds.can_score else ()),
        *_long(max_tokens, bounds),
    ]


def _penalised(max_tokens: int, vocab_size: int) -> SamplingParams:
    """One of the tokens liked would end the answer, but the first three quarters have no end."""
    bias = _liking(vocab_size)
    return SamplingParams(
        max_tokens=max_tokens,
        logit_bias=bias,
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=1.0,
        min_tokens=max_tokens * 3 // 4,
        stop=("\n\n",),
        stop_token_ids=(min(bias),),
    )


def _liking(vocab_size: int) -> dict[int, float]:
    """Return a bias for few tokens: any model's answer repeats them, and drafts are made."""
    return dict.fromkeys((vocab_size // part for part in (2, 3, 4, 5)), 30.0)


def _scored(max_tokens: int, bounds: Bounds) -> Target:
    """Ask for a prompt's own log-probabilities: as many rows of logits as it has tokens."""
    rng = random.Random("detinfer check scored prompt")
    length = max(2, min(_SCORED, bounds.longest - max_tokens))
    prompt = tuple(rng.randrange(bounds.vocab_size) for _ in range(length))
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=1)
    return Target(prompt, params, "scored prompt", _COSTLY)


def _long(max_tokens: int, bounds: Bounds) -> list[Target]:
    """Two prompts that differ in their first page alone: what follows it must not be shared."""
    params = SamplingParams(
        max_tokens=max_tokens, ignore_eos=True, logprobs=1, logit_bias=_liking(bounds.vocab_size)
    )
    length = max(1, min(_LONG, bounds.longest - max_tokens))
    rng = random.Random("detinfer check long prompt")
    first, other, rest = (
        tuple(rng.randrange(bounds.vocab_size) for _ in range(count))
        for count in (PAGE_SIZE, PAGE_SIZE, _LONG)
    )
    return [
        Target((*first, *rest)[:length], params, "long prompt", _COSTLY),
        Target((*other, *rest)[:length], params, "other beginning", _COSTLY),
    ]
