"""What constrains an answer, compiled: alike in the process that tries it and in the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detinfer.engine.schemas import read_schema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# json.dumps' own style: one way to space things, so there is more that has to come, and no white
# space without an end. What a schema says of itself ("x-guidance") does not count.
_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}


def make_table(tokenizer: str, vocab_size: int, ends: Sequence[int]) -> LLTokenizer:
    """Return what the compiler needs of a tokenizer; takes 0.2 s, in which no other thread runs.

    Args:
        tokenizer: as tokenizers writes it.
        vocab_size: of the model.
        ends: tokens that end an answer.
    """
    from llguidance import LLTokenizer

    return LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(ends) or None)


def read_rules(field: str, text: str) -> str:
    """Return what llguidance calls a grammar.

    Raises:
        Exception: the text is none.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if field == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    if field == "grammar":
        return str(LLMatcher.grammar_from_lark(any_to_lark(text)))
    return str(LLMatcher.grammar_from_json_schema(read_schema(text), overrides=_STYLE))


def make_matcher(table: LLTokenizer, rules: str) -> LLMatcher:
    """Return rules compiled, their first mask made; what is wrong is told by ``failure_of``."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(table, rules, log_level=0, limits=limits)
    if matcher.is_error():
        return matcher
    matcher.compute_bitmask()  # many a bound is met here or never
    # Or after the first token that has to come: where that goes on for ever, for one.
    ahead = matcher.deep_copy()
    forced = ahead.compute_ff_tokens()
    if forced and ahead.consume_token(forced[0]):
        ahead.compute_bitmask()
    return ahead if ahead.is_error() else matcher


def failure_of(matcher: LLMatcher) -> str | None:
    """Return a matcher's complaint, in one line that is not too long."""
    if not matcher.is_error():
        return None
    message = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
    return message if len(message) <= 300 else message[:300] + "…"
