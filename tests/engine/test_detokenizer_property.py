"""Streamed text is ``decode(prompt + answer)`` without ``decode(prompt)``, for every tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, backend

from detinfer.engine.detokenizer import Detokenizer, special_tokens, token_decoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PIECES = [" ", "  ", "a", "the", " Paris", "é", "日", "本", "🙂", "🌟", "👩‍🚀", "\n\n", ".", "n't"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)

kinds = pytest.mark.parametrize("kind", [*KINDS, "default"])


@pytest.fixture(scope="module")
def backends(default_model):
    from detinfer.checkpoint.loader import load_tokenizer

    default = load_tokenizer(default_model).backend_tokenizer
    return {kind: backend(kind) for kind in KINDS} | {"default": default}


def special_ids(tokenizer):
    return sorted(special_tokens(SimpleNamespace(backend_tokenizer=tokenizer)))


def stream(tokenizer, prompt, answer):
    """The pieces, and the special tokens' ids."""
    fast = SimpleNamespace(backend_tokenizer=tokenizer)
    special = special_tokens(fast)
    detokenizer = Detokenizer(token_decoder(fast), prompt, special)
    pieces = [detokenizer.push(token) for token in answer]
    return [*pieces, detokenizer.finish()], special


def decode(tokenizer, token_ids, special):
    return tokenizer.decode([t for t in token_ids if t not in special], skip_special_tokens=False)


def with_specials(data, ids, special):
    """The ids, with special tokens put in between."""
    for _ in range(data.draw(st.integers(0, 8))):
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from(special)))
    return ids


@kinds
@settings(max_examples=100, deadline=None)
@given(text=TEXT, data=st.data())
def test_text_that_is_cut_anywhere(backends, kind, text, data):
    """Cut inside a character too: all of it is then the answer's."""
    tokenizer = backends[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = with_specials(
        data, ids, sorted(special_tokens(SimpleNamespace(backend_tokenizer=tokenizer)))
    )
    cut = data.draw(st.integers(0, len(ids)))
    pieces, special = stream(tokenizer, ids[:cut], ids[cut:])
    plain = [t for t in ids[:cut] if t not in special]
    if cut and not plain:
        return  # another test's
    whole = decode(tokenizer, ids, special)
    sure = next(
        head
        for size in range(len(plain), -1, -1)
        if not (head := decode(tokenizer, plain[:size], special)).endswith(REPLACEMENT)
    )
    assert "".join(pieces) == whole[len(sure) :]
    assert not any(REPLACEMENT in piece for piece in pieces)


@kinds
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_tokens(backends, kind, data):
    """Bytes that are no text too, where a decoder knows them one by one."""
    tokenizer = backends[kind]
    size = tokenizer.get_vocab_size()
    tokens = st.lists(st.integers(0, size - 1) | st.integers(0, min(size, 400) - 1), max_size=60)
    prompt, answer = data.draw(tokens), data.draw(tokens)
    pieces, special = stream(tokenizer, prompt, answer)
    if prompt and all(token in special for token in prompt):
        return
    head = decode(tokenizer, prompt, special)
    whole = decode(tokenizer, prompt + answer, special)
    exact = "ByteLevel" in str(tokenizer.decoder)
    if whole.startswith(head) and (exact or REPLACEMENT not in whole):
        assert "".join(pieces) == whole[len(head) :]


@kinds
@settings(max_examples=50, deadline=None)
@given(text=TEXT, data=st.data())
def test_special_tokens_by_name(backends, kind, text, data):
    """As an answer has them that does not skip them, and an echoed prompt."""
    tokenizer = backends[kind]
    fast = SimpleNamespace(backend_tokenizer=tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = with_specials(data, ids, special_ids(tokenizer))
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(token_decoder(fast), ids[:cut])
    pieces = [*map(detokenizer.push, ids[cut:]), detokenizer.finish()]
    whole = decode(tokenizer, ids, ())
    if REPLACEMENT in whole:
        return  # a name is inside a character
    sure = next(
        head
        for size in range(cut, -1, -1)
        if not (head := decode(tokenizer, ids[:size], ())).endswith(REPLACEMENT)
    )
    assert "".join(pieces) == whole[len(sure) :]


@kinds
@settings(max_examples=50, deadline=None)
@given(text=TEXT, data=st.data())
def test_a_prompt_of_special_tokens_only_is_joined_on_to_by_name(backends, kind, text, data):
    tokenizer = backends[kind]
    special = special_ids(tokenizer)
    prompt = data.draw(st.lists(st.sampled_from(special), min_size=1, max_size=12))
    answer = tokenizer.encode(text, add_special_tokens=False).ids
    head = tokenizer.decode(prompt, skip_special_tokens=False)
    whole = tokenizer.decode(prompt + answer, skip_special_tokens=False)
    pieces, _ = stream(tokenizer, prompt, answer)
    assert "".join(pieces) == whole.removeprefix(head)


@kinds
@settings(max_examples=50, deadline=None)
@given(text=TEXT)
@example(text="日本語🙂" * 20)
def test_no_character_waits_for_the_next(backends, kind, text):
    ids = backends[kind].encode(text, add_special_tokens=False).ids
    pieces, special = stream(backends[kind], [], ids)
    given_out = ""
    for size, piece in enumerate(pieces[:-1], 1):
        given_out += piece
        now = decode(backends[kind], ids[:size], special)
        if not now.endswith(REPLACEMENT):
            assert given_out == now


def test_a_prompt_whose_last_tokens_begin_inside_a_character(backends):
    tokenizer = backends["default"]
    prompt, answer = (
        tokenizer.encode(text).ids for text in ("The star 🌟<|im_end|><|im_start|>", "system")
    )
    assert "".join(stream(tokenizer, prompt, answer)[0]) == "system"


_HON = ["<0xE6>", "<0x9C>", "<0xAC>"]  # 本


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        (["▁a", *_HON, *_HON], [*_HON, "a"], "本a"),
        (["▁a", *_HON, *_HON[:2]], [_HON[2], "a"], "本a"),
        (["▁a", *_HON, *_HON[:2]], ["a"], "a"),
        (["<s>"], ["▁Paris"], " Paris"),
        (["▁a", "<s>", "</s>", "<|user|>", "<s>", "</s>"], ["▁Paris"], " Paris"),
    ],
)
def test_what_leaked_or_was_lost(prompt, answer, text):
    tokenizer = backend("byte_fallback")
    tokens = [[tokenizer.token_to_id(token) for token in part] for part in (prompt, answer)]
    assert "".join(stream(tokenizer, *tokens)[0]) == text


def test_the_properties_see_a_context_that_begins_anywhere(monkeypatch):
    """The negative control: four tokens, wherever they begin."""
    monkeypatch.setattr("detinfer.engine.detokenizer._CONTEXT", (4,))
    with pytest.raises(AssertionError):
        test_what_leaked_or_was_lost(["▁a", *_HON, *_HON], [*_HON, "a"], "本a")
