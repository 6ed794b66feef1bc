"""How the text of a chat's answers is read: what in it is reasoning, and what is a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detinfer.config import ServerConfig
from detinfer.engine.detokenizer import special_tokens
from detinfer.errors import RequestError
from detinfer.params import MAX_CONSTRAINT, SamplingParams, constraint_of
from detinfer.server.api.openai.tools import thoughts
from detinfer.server.api.openai.tools.body import Calling
from detinfer.server.api.openai.tools.families import Family, family_of
from detinfer.server.api.openai.tools.forced import ForcedCalls
from detinfer.server.api.openai.tools.found import FoundCalls
from detinfer.server.api.openai.tools.pieces import Reader, Stage
from detinfer.server.api.openai.tools.thoughts import Thoughts

# What the client wants the text to be like, by the fields that say it.
_OF_THE_TEXT = ("response_format", "text.format")
PROMPT_END = 32  # tokens of the prompt that say whether the answer begins with reasoning


@dataclass(frozen=True)
class Reading:
    """How answers are read; as plain content if nothing is given.

    Attributes:
        calling: what may be called.
        family: how the model writes calls.
        reasoning: the parser that sets reasoning apart; None for none.
        shows_reasoning: whether it is told then.
        marks_are_special: whether a mark is a token that texts leave out, so that these may not.
    """

    calling: Calling | None = None
    family: Family | None = None
    reasoning: str | None = None
    shows_reasoning: bool = True
    marks_are_special: bool = False

    @property
    def id_length(self) -> int | None:
        """How long ids of calls have to be; None where they may be our own."""
        return None if self.family is None else self.family.id_length

    @property
    def tells_reasoning(self) -> bool:
        """Whether answers say what their reasoning was."""
        return self.reasoning is not None and self.shows_reasoning

    def prepare(self, values: dict[str, Any], sources: dict[str, str], calls: str | None) -> None:
        """Add what answers need to be read so to the values of their sampling.

        Args:
            values: by our names.
            sources: of our names, to those that the client used.
            calls: the schema that forces calls, if they are to be forced.

        Raises:
            RequestError: an answer that has to call is constrained besides. What its text has to
                be like is no constraint of calls: there will be none, and clients ask for both.
        """
        if self.marks_are_special:
            values["skip_special_tokens"] = False
        if calls is None:
            return
        for name in MAX_CONSTRAINT:
            if name in values and sources[name] not in _OF_THE_TEXT:
                raise RequestError(
                    f"{sources[name]}: got it beside tool_choice, which has to be called, expected "
                    "one of them",
                    sources[name],
                )
        values["json_schema"], sources["json_schema"] = calls, "tools"

    def reader(self, params: SamplingParams, prompt_end: str) -> Reader:
        """Return what reads one answer.

        Args:
            params: of the answer; one that a grammar constrains has no reasoning, nor calls but
                those that it forces.
            prompt_end: the last characters of its prompt.
        """
        calling, stages = self.calling, list[Stage]()
        if calling is not None and calling.forced:
            return Reader([ForcedCalls()])
        if constraint_of(params) is not None:
            return Reader()
        if self.reasoning is not None:
            stages.append(Thoughts(thoughts.begins_inside(self.reasoning, prompt_end)))
        if calling is not None and calling.found and self.family is not None:
            stages.append(FoundCalls(self.family, calling.names, calling.single))
        return Reader(stages)


def reading_of(
    tokenizer: Any, config: ServerConfig, calling: Calling | None, reasons: bool, shows: bool
) -> Reading:
    """Return how the answers of a chat are read.

    Args:
        tokenizer: the model's.
        config: which parsers to use.
        calling: what may be called.
        reasons: whether reasoning is to be set apart, if the server does so.
        shows: whether it is to be told then.
    """
    family = None if calling is None else family_of(tokenizer, config.tool_call_parser)
    reasoning = config.reasoning_parser if reasons and config.reasoning_parser != "none" else None
    marks: Sequence[str] = () if reasoning is None else (thoughts.BEGIN, thoughts.END)
    if calling is not None and calling.found and family is not None:
        marks = (*marks, family.begin, family.end)
    special = {*special_tokens(tokenizer).values()} if marks else set()
    return Reading(calling, family, reasoning, shows, not special.isdisjoint(marks))
