"""Tokenizers out of GGUF files cut text as the models' own do."""

import pytest
from gguf_samples import MERGES, TEMPLATE, TOKENS, metadata, write_gguf
from tokenizers import Regex, pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from detinfer.checkpoint.gguf.tokenizer import LLAMA3_PATTERN
from detinfer.checkpoint.loader import load_tokenizer, resolve_model

TEXTS = [
    "hello world 12345",
    "    12345",
    "1. one\n2. two\n\n10. ten  \n",
    "def f(x):\n\treturn x ** 2  # it's I'LL we'Ve",
    "naïve cafe\u0301 Ωmega 中文字 ٣٤ 😀👍🏽",
    " \u00a0\u3000 mixed\r\n\r\n  spaces ",
]


def tokenizer(tmp_path, pre, **changes):
    pairs = metadata(pre=pre) | changes
    return load_tokenizer(resolve_model(str(write_gguf(tmp_path / "m.gguf", pairs=pairs))))


def pieces(tok, text):
    return [piece for piece, _ in tok.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_text_comes_back_whole(tmp_path, cache, pre):
    tok = tokenizer(tmp_path, pre)
    for text in ["hello world 12345", "    12345", "1. one\n2. two", "naïve 😀"]:
        assert tok.decode(tok(text)["input_ids"]) == text


def test_smollm_takes_digits_one_by_one_and_gpt2_does_not(tmp_path, cache):
    # "123" is one token of the vocabulary; whether merges may see it is the pre-tokenizer's choice.
    smollm = tokenizer(tmp_path, "smollm")
    assert smollm.tokenize("hell 123") == ["hell", "Ġ", "1", "2", "3"]
    assert tokenizer(tmp_path, "gpt-2").tokenize("hell 123") == ["hell", "Ġ", "123"]


def test_qwen2_cuts_as_transformers_own_tokenizer(tmp_path, cache):
    tok = tokenizer(tmp_path, "qwen2")
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    own = Qwen2Tokenizer(vocab=vocabulary, merges=[tuple(m.split(" ")) for m in MERGES])
    for text in TEXTS:
        assert pieces(tok, text) == pieces(own, text)
        assert tok(text)["input_ids"] == own(text)["input_ids"]


def test_llama3_cuts_as_transformers_converter(tmp_path, cache):
    tok = tokenizer(tmp_path, "llama-bpe")
    pattern = TikTokenConverter(vocab_file=None).pattern
    assert pattern == LLAMA3_PATTERN
    own = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in TEXTS:
        assert pieces(tok, text) == [piece for piece, _ in own.pre_tokenize_str(text)]


def test_special_tokens_are_whole_and_only_control_tokens_are_special(tmp_path, cache):
    types = metadata()["tokenizer.ggml.token_type"].copy()
    types[0] = 4  # user defined: whole in a text, but shown to the user
    tok = tokenizer(tmp_path, "smollm", **{"tokenizer.ggml.token_type": types})
    ids = tok("<|endoftext|>he<|im_end|>")["input_ids"]
    assert ids == [0, TOKENS.index("he"), 2]
    assert tok.decode(ids, skip_special_tokens=True) == "<|endoftext|>he"


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [(False, False, []), (True, False, [1]), (True, True, [1, 2])],
)
def test_texts_are_framed_as_the_file_says(tmp_path, cache, bos, eos, expected):
    settings = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    tok = tokenizer(tmp_path, "smollm", **settings)
    assert tok("")["input_ids"] == expected


def test_llama3_files_that_do_not_say_begin_with_bos(tmp_path, cache):
    pairs = metadata(pre="llama-bpe")
    del pairs["tokenizer.ggml.add_bos_token"]
    path = write_gguf(tmp_path / "m.gguf", pairs=pairs)
    assert load_tokenizer(resolve_model(str(path)))("he")["input_ids"][0] == 1


def test_the_chat_template_and_special_roles_are_kept(tmp_path, cache):
    tok = tokenizer(tmp_path, "smollm", **{"tokenizer.ggml.padding_token_id": 0})
    assert tok.chat_template == TEMPLATE
    assert (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id) == (1, 2, 0)
    text = tok.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert text == "<|im_start|>he<|im_end|>\n"


def test_unused_rows_of_the_vocabulary_cannot_be_written(tmp_path, cache):
    types = metadata()["tokenizer.ggml.token_type"].copy()
    types[TOKENS.index("123")] = 5
    pairs = {"tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": MERGES[:-1]}
    tok = tokenizer(tmp_path, "gpt-2", **pairs)
    assert tok.tokenize("123") == ["12", "3"]
    assert "123" not in tok.get_vocab()
