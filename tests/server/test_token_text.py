from __future__ import annotations

import pytest
from fake_engine import byte_tokenizer

from detinfer.server.token_text import Offsets, TokenTexts

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
    assert texts.text(ids) == TEXT
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
    offsets = Offsets(texts)
    ids = list("aé😀b".encode())
    assert [offsets.next(i) for i in ids] == [0, 1, 1, 2, 2, 2, 2, 3]


def test_special_tokens_take_room_only_where_they_are_in_the_text():
    texts = TokenTexts(byte_tokenizer())
    ids = [1, 97, 2, 98]
    for text, expected in [
        ("<|im_start|>a<|im_end|>b", [0, 12, 13, 23]),
        ("a<|im_end|>b", [0, 0, 1, 11]),
        (None, [0, 0, 1, 1]),  # an answer's text leaves them out
    ]:
        offsets = Offsets(texts)
        assert [offsets.next(i, text) for i in ids] == expected


def test_space_that_sentencepiece_puts_in_front_takes_no_room():
    tokenizer = _sentencepiece()
    offsets = Offsets(TokenTexts(tokenizer))
    ids = tokenizer.encode("n n")
    assert [offsets.next(i, "n n") for i in ids] == [0, 1]


def test_bytes_of_the_default_models_tokens_join_to_the_text(default_model):
    from detinfer.models.loader import load_tokenizer

    tokenizer = load_tokenizer(default_model)
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(TEXT)
    assert b"".join(map(texts.bytes_of, ids)) == TEXT.encode()
    assert texts.special == set(tokenizer.added_tokens_decoder)
