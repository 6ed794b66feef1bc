from __future__ import annotations

import functools
import itertools

import pytest
import small_tokenizers
from fake_engine import byte_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detinfer.engine.detokenizer import Detokenizer
from detinfer.engine.outputs import RequestOutput
from detinfer.logprobs import TokenLogprob
from detinfer.server.api.openai.completion_choice import CompletionChoice
from detinfer.server.api.openai.echo import Offsets, echo_of
from detinfer.server.api.openai.telling import Telling
from detinfer.server.api.token_texts import TokenTexts

TEXT = " né  😀\n\tzero-width\u200b end"


def _sentencepiece():
    """As Llama 2's: spaces are ``▁``, one in front, and unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "n", "▁n"]
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[("▁", "n")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_bytes_of_byte_level_tokens_join_to_the_text():
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(TEXT)
    assert b"".join(map(texts.bytes_of, ids)) == TEXT.encode()
    assert texts.decode(ids) == TEXT
    assert [texts.bytes_of(i) for i in range(3, 256)] == [bytes([i]) for i in range(3, 256)]


def test_bytes_of_sentencepiece_tokens_join_to_the_text_and_its_space():
    tokenizer = _sentencepiece()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("n né 😀")
    assert b"".join(map(texts.bytes_of, ids)) == " n né 😀".encode()
    assert texts.text_of(tokenizer.convert_tokens_to_ids("▁n")) == " n"
    assert texts.bytes_of(tokenizer.convert_tokens_to_ids("<0xC3>")) == b"\xc3"


@pytest.mark.parametrize("make", [byte_tokenizer, _sentencepiece])
def test_special_tokens_are_their_names_and_padding_ids_nothing(make):
    tokenizer = make()
    texts = TokenTexts(tokenizer)
    assert tokenizer.eos_token_id in texts.special
    assert texts.text_of(tokenizer.eos_token_id) == tokenizer.eos_token
    assert texts.bytes_of(100_000) == b""


def test_offsets_are_places_of_characters_in_the_text():
    texts = TokenTexts(byte_tokenizer())
    offsets = Offsets(Detokenizer(texts.decode))
    ids = list("aé😀b".encode())
    assert [offsets.next(i) for i in ids] == [0, 1, 1, 2, 2, 2, 2, 3]


def test_special_tokens_take_room_only_where_they_are_in_the_text():
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    ids = [1, 97, 2, 98]
    for prompt in ("<|im_start|>a<|im_end|>b", ids):
        assert echo_of(texts, prompt, True).offsets == [0, 12, 13, 23]
    answer = Offsets(Detokenizer(texts.decode, (), texts.special))
    assert [answer.next(i) for i in ids] == [0, 0, 1, 1]  # an answer's text leaves them out


@pytest.mark.parametrize("text", ["", "<s>", " ", "a", "<s> é"])
def test_tokens_that_the_tokenizer_adds_take_no_room(text):
    tokenizer = _adding("byte_fallback")
    ids = tokenizer.encode(text)
    offsets = echo_of(TokenTexts(tokenizer), text, True).offsets
    assert (offsets[0], offsets[-1]) == (0, len(text))
    if len(ids) > 2:
        assert offsets[1] == 0


def _adding(kind):
    """A tokenizer that begins a text with ``<s>`` and ends it with ``</s>``."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    adding = small_tokenizers.KINDS[kind]()
    adding.add_special_tokens(list(small_tokenizers.SPECIAL))
    ends = [(name, adding.token_to_id(name)) for name in ("<s>", "</s>")]
    adding.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=adding)


def _trimming():
    """As Llama 3's: the tokenizer itself says that a token begins after its spaces."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    trimming = small_tokenizers.byte_level()
    trimming.add_special_tokens(list(small_tokenizers.SPECIAL))
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=trimming)


KINDS = {
    **{
        kind: functools.partial(small_tokenizers.tokenizer, kind)
        for kind in ("byte_level", "byte_fallback", "unigram")
    },
    "sentencepiece": _sentencepiece,
    "adding": functools.partial(_adding, "unigram"),
    "trimming": _trimming,
}
PIECES = [" ", "  ", "a", "the", " Paris", "é", "日", "🙂", "\n\n", ".", "<s>", "<|user|>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def _choice(tokenizer, prompt, answer_ids):
    """A whole choice that echoes ``prompt``, and the tokens it lists."""
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    choice = CompletionChoice(0, texts, Telling(logprobs=0), ids, echo_of(texts, prompt, True))
    detokenizer = Detokenizer(texts.decode, ids, texts.special)
    for i, token_id in enumerate(answer_ids):
        last = i == len(answer_ids) - 1
        text = detokenizer.push(token_id) + (detokenizer.finish() if last else "")
        entry = TokenLogprob(token_id, -1.0, [], 1)
        scores = [TokenLogprob(one, -1.0, [], 1) for one in ids[1:]]
        choice.add(
            RequestOutput(
                "r", text, [token_id], [entry], "length" if last else None, "d", None, True,
                len(ids), i + 1, prompt_logprobs=None if i else scores,
            )
        )  # fmt: skip
    return choice.value(), [*ids, *answer_ids]


@functools.cache
def _made(kind):
    return KINDS[kind]()


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
@example(prompt=" a", answer="the")
@example(prompt="  the", answer=" a")
@example(prompt=" é", answer="日")
def test_every_token_is_at_its_offset_in_the_text(kind, as_ids, prompt, answer):
    tokenizer = _made(kind)
    prompt_ids = tokenizer.encode(prompt)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    if not prompt_ids or not answer_ids:
        return
    value, ids = _choice(tokenizer, prompt_ids if as_ids else prompt, answer_ids)
    text, offsets = value["text"], value["logprobs"]["text_offset"]
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets)
    assert offsets[-1] <= len(text)
    texts, given = TokenTexts(tokenizer), 0
    for i, (token_id, at) in enumerate(zip(ids, offsets, strict=True)):
        own = texts.text_of(token_id)
        added = kind == "adding" and not as_ids and i in (0, len(prompt_ids) - 1)
        shown = token_id not in texts.special if i >= len(prompt_ids) else not added
        if "\ufffd" in own or not shown:
            continue
        if i < len(prompt_ids) and tokenizer.convert_ids_to_tokens(token_id).startswith("<0x"):
            continue  # Unigram's are one unknown run; the property below has the bytes
        # The text may lack the space that SentencePiece puts in front of it, or of what comes
        # after a special token.
        first = i in (0, 1) or i == len(prompt_ids) or not texts.special.isdisjoint(ids[i - 2 : i])
        assert text.startswith(own, at) or (first and text.startswith(own.removeprefix(" "), at)), (
            own,
            at,
            text,
        )
        given += 1
    if isinstance(prompt, str) and not as_ids:
        assert text.startswith(prompt)
        assert offsets[len(prompt_ids)] == len(prompt)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(prompt=TEXTS)
@example(prompt=" a")
def test_offsets_are_lengths_of_what_the_tokens_before_decode_to(kind, prompt):
    """Wherever the tokens decode to the text that was sent."""
    tokenizer = _made(kind)
    texts, ids = TokenTexts(tokenizer), tokenizer.encode(prompt)
    for sent in (prompt, ids):
        echo = echo_of(texts, sent, True)
        if texts.decode(ids) == echo.text:
            heads = [texts.decode(ids[:i]).rstrip("\ufffd") for i in range(len(ids))]
            # A byte that begins a character makes some decoders give up those before it too.
            assert echo.offsets == list(itertools.accumulate(map(len, heads), max))


def test_bytes_of_the_default_models_tokens_join_to_the_text(default_model):
    from detinfer.checkpoint.loader import load_tokenizer

    tokenizer = load_tokenizer(default_model)
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(TEXT)
    assert b"".join(map(texts.bytes_of, ids)) == TEXT.encode()
    assert texts.special == set(tokenizer.added_tokens_decoder)
