"""The requests whose answers are compared."""

from __future__ import annotations

from dataclasses import dataclass

from detinfer.params import SamplingParams

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One request under test.

    Attributes:
        prompt: text, or token ids.
        params: its own parameters; with a temperature it needs a seed, or no two answers agree.
    """

    prompt: Prompt
    params: SamplingParams

    @property
    def label(self) -> str:
        """The prompt on one line, cut to fit a table."""
        text = self.prompt if isinstance(self.prompt, str) else f"token ids {list(self.prompt)}"
        line = " ".join(text.split())
        return line if len(line) <= 48 else f"{line[:47]}…"


_QUESTION = "Q: Why does the moon look larger close to the horizon?\nA:"

_CODE = '''def is_prime(n: int) -> bool:
    """Return whether n is a prime number."""
    if n < 2:
'''

_EMOJI = "Der Bäcker öffnet früh: 🥐 naïve café, 東京の朝, доброе утро! Heute gibt es"

# Just under 128 tokens: the answer begins on one KV page and ends on the next.
_LIST = """Heights above the sea and years of opening of the stations of the northern line:
1. Harbour: 3 m, 1871
2. Old Market: 12 m, 1871
3. Mill Bridge: 27 m, 1874
4. Oakfield: 58 m, 1880
5. Quarry Road: 96 m, 1893
6. Upper Dale: 143 m, 1902
Passengers who ride from the first station to the last climb"""


def default_targets(max_tokens: int = 32) -> list[Target]:
    """Four prompts of different kinds and lengths, the last of them sampled with a fixed seed."""
    greedy = SamplingParams(max_tokens=max_tokens)
    sampled = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_k=50, seed=20)
    return [
        Target(_QUESTION, greedy),
        Target(_CODE, greedy),
        Target(_LIST, greedy),
        Target(_EMOJI, sampled),
    ]
