"""What the choices of both of OpenAI's routes tell, beside what vLLM's clients ask for too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detinfer.engine.outputs import RequestOutput
from detinfer.logprobs import TokenLogprob
from detinfer.server.api.openai.echo import Echo
from detinfer.server.api.token_texts import TokenTexts
from detinfer.server.reply import Value


@dataclass(frozen=True)
class Telling:
    """What a request asks for.

    Attributes:
        token_ids: ids of the prompt and of the answer.
        names_are_ids: log-probabilities name tokens by their ids, of which no two are alike.
        special: special tokens are part of the text.
        logprobs: how many of the likeliest tokens at each place of the text; None for none.
        prompt_logprobs: the same of the prompt, in a list of its own.
        prompt_only: nothing is wanted but the prompt (``max_tokens`` of 0): one token is
            generated, and not given.
    """

    token_ids: bool = False
    names_are_ids: bool = False
    special: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_only: bool = False


class TellingChoice:
    """What both routes' choices have, as their increments come.

    Args:
        index: among the choices.
        texts: spells tokens.
        telling: what to tell beside the text.
        prompt_token_ids: what the choice answers.
        echo: what the text begins with, if anything.

    Attributes:
        last: the last increment that came.
        receipt: see ``Answer``.
    """

    def __init__(
        self,
        index: int,
        texts: TokenTexts,
        telling: Telling,
        prompt_token_ids: Sequence[int],
        echo: Echo | None = None,
    ) -> None:
        self.index = index
        self.last: RequestOutput | None = None
        self.receipt: Value = {}
        self._texts = texts
        self._telling = telling
        self._prompt = prompt_token_ids
        self._echo = echo
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._scores: Sequence[TokenLogprob] = ()

    @property
    def completion_tokens(self) -> int:
        """Output tokens given so far."""
        if self.last is None or self._telling.prompt_only:
            return 0
        return self.last.completion_tokens

    def of_prompt(self) -> Value:
        """Return what is told of the prompt, once there was an increment."""
        told: Value = {}
        if self._telling.token_ids:
            told["prompt_token_ids"] = list(self._prompt)
        if self._telling.prompt_logprobs is not None:  # the first token has none
            told["prompt_logprobs"] = [None, *map(self._at_place, self._scores)]
        return told

    def _at_place(self, score: TokenLogprob) -> Value:
        """Return the prompt's own token first, then the likeliest; each under its id."""
        found = {score.token_id: (score.logprob, score.rank)}
        for rank, (token_id, logprob) in enumerate(score.top[: self._telling.prompt_logprobs], 1):
            found.setdefault(token_id, (logprob, rank))
        return {
            str(token_id): {
                "logprob": logprob,
                "rank": rank,
                "decoded_token": self._texts.text_of(token_id),
            }
            for token_id, (logprob, rank) in found.items()
        }

    def _arrive(self, output: RequestOutput) -> bool:
        """Take note of an increment; whether it is the first."""
        first, self.last = self.last is None, output
        if first:
            self._scores = output.prompt_logprobs or ()
        return first

    def _name(self, token_id: int) -> str:
        """Return what a token is called among log-probabilities."""
        by_id = self._telling.names_are_ids
        return f"token_id:{token_id}" if by_id else self._texts.text_of(token_id)

    def _end(self, output: RequestOutput, reason: str | None) -> Value:
        """Return why the choice ended and what proves it; before its end only that it has not."""
        if output.finish_reason is None:
            return {"finish_reason": None}
        return {
            "finish_reason": reason,
            "digest": output.digest,
            "seed": output.seed,
            "deterministic": output.deterministic,
            **self.receipt,
        }

    def _ids(self, token_ids: Sequence[int]) -> Value:
        return {"token_ids": list(token_ids)} if self._telling.token_ids else {}


def usage(choices: Sequence[TellingChoice], n: int) -> Value:
    """Token counts: of each prompt once, of every answer.

    Args:
        choices: the answers so far, ``n`` to each prompt, one prompt after the other.
        n: answers to each prompt.
    """
    lasts = [choice.last for choice in choices]
    firsts = [last for last in lasts[::n] if last is not None]
    prompt = sum(last.prompt_tokens for last in firsts)
    completion = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(last.cached_tokens for last in firsts)},
    }
