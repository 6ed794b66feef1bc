from __future__ import annotations

import random

import pytest
from fake_engine import byte_tokenizer

from detinfer.engine.detokenizer import Detokenizer, StopStrings, special_tokens, token_decoder
from detinfer.params import SamplingParams
from detinfer.server.api.tgi.text_pieces import TextPieces

TEXT = "né 😀 STO and STOP end"


def _increments(params: SamplingParams, cuts: list[int]) -> list[tuple[list[int], str]]:
    """What an engine says that gives out several tokens at a time, as far as the stop string."""
    tokenizer = byte_tokenizer()
    special = special_tokens(tokenizer)
    detokenizer = Detokenizer(token_decoder(tokenizer), [97], special)
    stops = StopStrings(params.stop)
    increments: list[tuple[list[int], str]] = [([], "")]
    for place, token in enumerate(TEXT.encode()):
        if place in cuts:
            increments.append(([], ""))
        text, stopped = detokenizer.push(token), False
        if place >= params.min_tokens:
            text, stopped = stops.push(text, special.get(token, ""))
        ids, known = increments[-1]
        increments[-1] = ([*ids, token], known + text)
        if stopped:
            return increments
    ids, known = increments[-1]
    increments[-1] = (ids, known + stops.finish())
    return increments


def _pieces(params: SamplingParams, cuts: list[int]) -> list[str]:
    pieces = TextPieces(byte_tokenizer(), [97], params)
    increments = _increments(params, cuts)
    return [
        piece
        for place, (ids, text) in enumerate(increments)
        for piece in pieces.add(ids, text, place == len(increments) - 1)
    ]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(stop=("STOP",)),
        SamplingParams(stop=("STOP", " end"), min_tokens=18),
    ],
)
def test_pieces_join_to_the_text_and_do_not_depend_on_the_increments(params):
    one_by_one = list(range(1, len(TEXT.encode())))
    expected = _pieces(params, one_by_one)
    assert "".join(expected) == "".join(text for _, text in _increments(params, []))
    assert sum(map(bool, expected)) >= 10
    draw = random.Random(7)
    for _ in range(50):
        assert _pieces(params, draw.sample(one_by_one, 6)) == expected


def test_the_text_of_an_increment_on_its_last_token_does_depend_on_them():
    """The control: cut so, the pieces would differ."""

    def naive(cuts: list[int]) -> list[str]:
        return [
            piece
            for ids, text in _increments(SamplingParams(), cuts)
            for piece in [*[""] * (len(ids) - 1), text]
        ]

    assert naive([3, 9]) != naive([4, 9])
