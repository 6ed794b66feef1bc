"""Incremental text: whole characters only, and nothing of a stop string that matched."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from detinfer.engine.detokenizer import Detokenizer, StopStrings

TEXTS = ["Hello, world", "naïve café", "日本語のテキスト", "🙂🙃 flags 🇫🇷", "a\n\n  b", "é" * 40]


def byte_level_decode(token_ids):
    """One token a byte, as the worst byte-level BPE would split; 256 is a special token."""
    return bytes(t for t in token_ids if t < 256).decode("utf-8", "replace")


def byte_fallback_tokenizer():
    """SentencePiece's shape: whole words with a leading space, and one token for each byte."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {"▁Paris": 256, "▁is": 257, "s": 258}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def stream(decode, token_ids, context=()):
    detokenizer = Detokenizer(decode, context)
    pieces = [detokenizer.push(token) for token in token_ids]
    return [*pieces, detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(text):
    pieces = stream(byte_level_decode, text.encode())
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_not_held_longer_than_its_character(text):
    detokenizer, given = Detokenizer(byte_level_decode), ""
    for size, character in enumerate(text):
        for byte in character.encode():
            assert given == text[:size]
            given += detokenizer.push(byte)
    assert given == text


def test_random_text_with_special_tokens_between():
    rng = random.Random(1)
    for _ in range(50):
        text = "".join(rng.choice("ab é日🙂\n") for _ in range(rng.randint(1, 80)))
        tokens = list(text.encode())
        for _ in range(10):
            tokens.insert(rng.randint(0, len(tokens)), 256)
        assert "".join(stream(byte_level_decode, tokens)) == text


@pytest.mark.parametrize("text", [*TEXTS, "日本" * 30])
def test_byte_fallback_tokens(text):
    tokenizer = byte_fallback_tokenizer()
    tokens = [256, *text.encode(), 257]
    pieces = stream(tokenizer.decode, tokens, context=[257])
    assert "".join(pieces) == " Paris" + text + " is"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_the_first_token_joins_on_to_the_prompt():
    tokenizer = byte_fallback_tokenizer()
    assert "".join(stream(tokenizer.decode, [256, 257])) == "Paris is"
    assert "".join(stream(tokenizer.decode, [256, 257], context=[257, 258])) == " Paris is"


def test_a_prompt_that_ends_inside_a_character():
    smile = "🙂".encode()
    assert "".join(stream(byte_level_decode, [*smile[2:], 65], context=[66, *smile[:2]])) == "🙂A"


def test_bytes_that_are_no_text_come_out_as_replacement_characters():
    assert "".join(stream(byte_level_decode, [65, 0xF0, 0x9F])) == "A\N{REPLACEMENT CHARACTER}"
    garbage = [0xFF] * 1000
    pieces = stream(byte_level_decode, garbage)
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * 1000


@pytest.mark.parametrize("tokens", [[65] * 5000, [256] * 5000, [0xFF] * 5000, [0xE6, 0x97] * 2500])
def test_the_work_for_a_token_is_bounded(tokens):
    longest = 0

    def decode(token_ids):
        nonlocal longest
        longest = max(longest, len(token_ids))
        return byte_level_decode(token_ids)

    stream(decode, tokens)
    assert longest <= 32


def cut(stops, pieces, included=False):
    matcher, given = StopStrings(stops, included), []
    for piece in pieces:
        text, found = matcher.push(piece)
        given.append(text)
        if found:
            return given, True
    return [*given, matcher.finish()], False


@pytest.mark.parametrize(
    ("stops", "text", "kept"),
    [
        (["end"], "the end is", "the "),
        (["end"], "the en", "the en"),
        (["aab"], "aaaab", "aa"),
        (["abab", "ba"], "xabab", "xa"),
        (["bc", "abc"], "xabc", "x"),
        (["abcdef", "cd"], "xabcd", "xab"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["é🙂"], "café🙂!", "caf"),
        ([], "anything", "anything"),
    ],
)
def test_stop_strings(stops, text, kept):
    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        given, found = cut(stops, pieces)
        assert "".join(given) == kept, size
        assert found == (kept != text)
        # With the stop string itself nothing waits, and nothing after it comes out.
        given, found = cut(stops, pieces, included=True)
        whole = min((text.find(s) + len(s) for s in stops if s in text), default=len(text))
        assert "".join(given) == text[:whole]
        assert all(given[: len(pieces)]) or found


def test_stop_strings_equal_a_plain_search_and_hold_back_no_more_than_needed():
    rng = random.Random(2)
    for _ in range(2000):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        text = "".join(rng.choices("abc", weights=[3, 3, 1], k=12))
        # The match that is complete first wins; of those, the longest.
        ends = [(text.find(s) + len(s), -len(s)) for s in stops if s in text]
        end, size = min(ends, default=(len(text), 0))
        given, found = cut(stops, text)
        assert "".join(given) == text[: end + size]
        assert found == bool(ends)
        for i in range(end - 1):
            so_far = text[: i + 1]
            held = max(n for s in stops for n in range(len(s)) if so_far.endswith(s[:n]))
            assert "".join(given[: i + 1]) == so_far[: len(so_far) - held]


@pytest.mark.parametrize(
    ("stop", "kept"),
    [("<end>", "ab"), ("b<end>\n", "a"), ("d>\n", "ab"), ("<end>c", None), ("b\n", None)],
)
def test_stop_strings_find_names_that_the_text_leaves_out(stop, kept):
    matcher, text = StopStrings([stop]), ""
    for piece in (("ab", ""), ("", "<end>"), ("\n", "")):
        new, found = matcher.push(*piece)
        text += new
        if found:
            break
    assert found == (kept is not None)
    assert text + matcher.finish() == (kept or "ab\n")


def test_what_is_held_back_comes_out_without_the_names():
    matcher = StopStrings(["<end><end>x"])
    assert matcher.push("a", "<end>") == ("a", False)
    assert matcher.push("", "<end>") == ("", False)
    assert matcher.push("y") == ("y", False)
    assert matcher.push("<e") == ("", False)
    assert matcher.finish() == "<e"
