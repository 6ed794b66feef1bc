"""Small tokenizers of every kind that splits characters or joins tokens in a way of its own."""

import functools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL = ("<s>", "</s>", "<|user|>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["a", "b", "the", "Paris", "is", "é", "日", "."]


def byte_level():
    """One token a byte and some longer ones, not all of them whole characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = functools.partial(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str)
    merges, vocab = [], {character: i for i, character in enumerate(alphabet)}
    for text in (" a", "th", "the", " Pa", "é", "日", "🙂", "\n\n"):
        pieces = list(spell(text)[0][0])
        pieces = pieces[:-1] if len(pieces) > 3 else pieces  # three bytes of four
        for size in range(2, len(pieces) + 1):
            pair = ("".join(pieces[: size - 1]), pieces[size - 1])
            if "".join(pair) not in vocab:
                merges.append(pair)
                vocab["".join(pair)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback():
    """As Llama 2's: ``▁`` for a space, one in front, and a token a byte for what is unknown."""
    pieces = [*BYTES, "▁", *sorted(set("".join(WORDS))), *("▁" + word for word in WORDS if word)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for word in WORDS:
        left = "▁"
        for character in word:
            if left + character not in vocab:
                vocab[left + character] = len(vocab)
            if (left, character) not in merges:
                merges.append((left, character))
            left += character
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def unigram():
    """As T5's: the decoder drops the first token's ``▁``."""
    pieces = ["<unk>", "▁", *(w for word in WORDS for w in (word, "▁" + word)), *BYTES]
    vocab = [(piece, -float(i % 9)) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def word_piece():
    """As BERT's: spaces are between words, and a word's later pieces begin with ``##``."""
    pieces = ["[UNK]", *(p for word in WORDS for p in (word, "##" + word)), ",", "'s", "n't"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def end_of_word():
    """As GPT-1's: a word's last piece ends with ``</w>``, which is a space but at the end."""
    pieces = [p for word in WORDS for p in (word, word + "</w>")]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="a"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


KINDS = {f.__name__: f for f in (byte_level, byte_fallback, unigram, word_piece, end_of_word)}


@functools.cache
def backend(kind):
    """One of them, with special tokens."""
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@functools.cache
def tokenizer(kind):
    """The same as transformers has it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend(kind), bos_token=SPECIAL[0], eos_token=SPECIAL[1]
    )
