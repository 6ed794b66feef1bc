"""Requests by number: the same number is always the same prompt and parameters."""

import functools
import random
from dataclasses import dataclass, replace

from fake_runner import EOS
from tiny_models import VOCAB

from detinfer.check.grammars import draw_constraint
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.params import SamplingParams

POPULATION = 4000
LONGEST_PROMPT, LONGEST_OUTPUT = 160, 90
GRAMMARS = 50
SHOWN = [token for token in range(VOCAB) if not 90 <= token <= EOS]  # one character each


@dataclass(frozen=True)
class DrawnRequest:
    prompt: list[int]
    params: SamplingParams


@functools.cache
def request(number):
    """Request ``number`` of the population; the odd ones are fast."""
    rng = random.Random(f"request {number}")
    prompt = _prompt(rng)
    return DrawnRequest(prompt, _params(rng, prompt, deterministic=number % 2 == 0))


@functools.cache
def constrained(number):
    """Request ``number``, two in three of them with a grammar; grammars are fewer than requests."""
    drawn = request(number)
    if number // 2 % 3 == 0:
        return drawn
    constraint = draw_constraint(number % GRAMMARS)
    return DrawnRequest(drawn.prompt, replace(drawn.params, **constraint))


@functools.cache
def _trunk(number):
    """What the prompts of many requests begin with; trunks differ in their first page alone."""
    first, rest = random.Random(f"trunk {number}"), random.Random("after the first page")
    own = [first.randrange(VOCAB) for _ in range(PAGE_SIZE)]
    return own + [rest.randrange(VOCAB) for _ in range(LONGEST_PROMPT - PAGE_SIZE)]


def _prompt(rng):
    """A trunk up to anywhere, then something of its own, often said twice."""
    shared = rng.choice([0, 30, 63, 64, 65, 128, 128, rng.randrange(150)])
    own = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 9, 20, 50]))]
    prompt = _trunk(rng.randrange(2))[:shared] + own * rng.choice([1, 2, 3])
    pages = min(len(prompt), LONGEST_PROMPT) // PAGE_SIZE
    if pages and rng.random() < 0.5:  # its output soon asks for another page
        return prompt[: pages * PAGE_SIZE - rng.randrange(6)]
    return prompt[:LONGEST_PROMPT]


def _params(rng, prompt, deterministic):
    max_tokens = rng.choice([rng.randint(1, 9), rng.randint(10, LONGEST_OUTPUT), LONGEST_OUTPUT])
    few = rng.choices(SHOWN, k=rng.choice([2, 3, 4]))  # liked so much that outputs repeat them
    liking = rng.choice([0.0, 4.0, 8.0, 12.0])
    stops = [rng.choice(few), rng.choice(SHOWN), rng.choice(SHOWN)]
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=rng.choice([0.0, 0.0, 0.0, 0.7, 1.5]),
        top_p=rng.choice([1.0, 1.0, 0.9]),
        top_k=rng.choice([0, 0, 5]),
        min_p=rng.choice([0.0, 0.0, 0.01]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        presence_penalty=rng.choice([0.0, 0.0, 0.7, -0.7]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.3, -0.3]),
        logit_bias={**dict.fromkeys(few, liking), rng.choice(prompt): -100.0} if liking else {},
        seed=rng.getrandbits(64),
        stop=rng.choice([(), (), ("".join(chr(33 + t) for t in rng.choices(few, k=3)),)]),
        stop_token_ids=rng.choice([(), (), (rng.choice(stops),)]),
        ignore_eos=rng.random() < 0.6,
        min_tokens=rng.choice([0, 0, rng.randint(0, max_tokens), max_tokens]),
        logprobs=rng.choice([None, None, 0, 3]),
        prompt_logprobs=rng.choice([None, None, None, None, None, 0, 3]),
        deterministic=deterministic,
    )
