"""The tokenizer's part of the fingerprint follows what it is, and it always does the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from detinfer.checkpoint.loader import ModelFiles, load_tokenizer
from detinfer.checkpoint.tokenizer import tokenizer_digest
from detinfer.errors import UnsupportedModelError

TEXT = "<s>hello hello  hell o</s>"


def files_of(folder: Path) -> ModelFiles:
    return ModelFiles(folder, folder.name, (), "float32")


def load(folder):
    return load_tokenizer(files_of(folder))


def digest(folder):
    return tokenizer_digest(load(folder))


@pytest.fixture
def folder(tmp_path):
    """A byte-level tokenizer with some merges, as transformers saves it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello")]
    pieces = ["<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template="{{ 1 }}"
    )
    where = tmp_path / "model"
    tokenizer.save_pretrained(where)
    (where / "config.json").write_text('{"model_type": "llama"}')
    return where


def edit(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=4))


def in_json(change):
    return lambda folder: edit(folder, "tokenizer.json", change)


def in_config(**values):
    return lambda folder: edit(folder, "tokenizer_config.json", lambda found: found.update(values))


def more_templates(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ 2 }}")


_ADDED = {"id": 300, "content": "hell", "special": False, "normalized": False}
_ADDED |= {"single_word": False, "lstrip": False, "rstrip": False}
_BOS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}


@pytest.mark.parametrize(
    "change",
    [
        in_json(lambda found: found["model"]["merges"].pop()),
        in_json(lambda found: found["model"].update(ignore_merges=True)),
        in_json(lambda found: found.update(normalizer={"type": "Lowercase"})),
        in_json(lambda found: found["pre_tokenizer"].update(add_prefix_space=True)),
        in_json(lambda found: found.update(post_processor=_BOS)),
        in_json(lambda found: found.update(decoder={"type": "Fuse"})),
        in_json(lambda found: found["added_tokens"].append(_ADDED)),
        in_json(lambda found: found["added_tokens"][1].update(rstrip=True)),
        in_config(split_special_tokens=True),
        in_config(eos_token="<s>"),
        in_config(pad_token="</s>"),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ 2 }}"),
        more_templates,
    ],
)
def test_it_follows_whatever_changes_ids_text_or_prompts(folder, change):
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


def test_files_without_a_tokenizer_json_count_by_what_is_made_of_them(tmp_path):
    """A list of file names did not have vocab.txt."""
    digests = set()
    for words in (["hello", "world"], ["world", "hello"]):
        folder = tmp_path / words[0]
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        (folder / "vocab.txt").write_text("\n".join(names) + "\n")
        digests.add(digest(folder))
    assert len(digests) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, "tokenizer.json", lambda found: None),
        in_config(model_max_length=77),
        lambda folder: (folder / "README.md").write_text("hello"),
    ],
)
def test_it_follows_nothing_else(folder, change, tmp_path):
    before = digest(folder)
    change(folder)
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    assert digest(elsewhere) == before


def test_it_is_the_same_after_use_and_in_another_process(folder):
    tokenizer = load(folder)
    before = tokenizer_digest(tokenizer)
    tokenizer.encode(TEXT)
    tokenizer.apply_chat_template([{"role": "user", "content": TEXT}])
    assert tokenizer_digest(tokenizer) == before
    script = (
        "import sys; from pathlib import Path\n"
        "from detinfer.checkpoint.loader import ModelFiles, load_tokenizer\n"
        "from detinfer.checkpoint.tokenizer import tokenizer_digest\n"
        "files = ModelFiles(Path(sys.argv[1]), '', (), '')\n"
        "print(tokenizer_digest(load_tokenizer(files)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == before


def test_truncation_and_padding_of_the_file_are_off(folder):
    plain = load(folder).encode(TEXT)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    assert len(backend.encode(TEXT).ids) == 50
    tokenizer = load(folder)
    assert tokenizer.encode(TEXT) == plain
    assert tokenizer.backend_tokenizer.encode(TEXT).ids == plain
    assert len(plain) > 3


@pytest.mark.parametrize("dropout", [0.1, 1.0])
def test_a_tokenizer_that_draws_is_refused(folder, dropout):
    in_json(lambda found: found["model"].update(dropout=dropout))(folder)
    with pytest.raises(UnsupportedModelError, match=r"at random: .*model\.dropout: got") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_dropout_of_nothing_draws_nothing(folder):
    in_json(lambda found: found["model"].update(dropout=0.0))(folder)
    assert load(folder).encode(TEXT) == load(folder).encode(TEXT)
