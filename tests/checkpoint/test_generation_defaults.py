"""Sampling that generation_config.json suggests: read, told, and never applied."""

import json

import pytest
from gguf_samples import write_gguf

from detinfer import LLM, SamplingParams
from detinfer.checkpoint.generation_defaults import generation_defaults, not_applied
from detinfer.checkpoint.loader import resolve_model
from detinfer.cli import doctor
from detinfer.errors import ModelLoadError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": [1, 2], "pad_token_id": 0, "transformers_version": "5.17.0"}, {}),
        ({"do_sample": False, "temperature": 1.0, "top_p": 1, "top_k": 50, "num_beams": None}, {}),
        (
            {"top_p": 0.9, "do_sample": True, "temperature": 0.6, "eos_token_id": 2},
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        ),
        ({"repetition_penalty": 1.05, "top_k": 20}, {"top_k": 20, "repetition_penalty": 1.05}),
        ({"suppress_tokens": [], "begin_suppress_tokens": [7]}, {"begin_suppress_tokens": [7]}),
        ({"max_new_tokens": 64, "no_repeat_ngram_size": 0}, {"max_new_tokens": 64}),
    ],
)
def test_what_would_change_an_answer_is_named(tmp_path, given, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    assert generation_defaults(tmp_path) == expected


def test_no_file_suggests_nothing_and_a_damaged_one_is_named(tmp_path):
    assert generation_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(ModelLoadError, match=r"generation_config\.json: expected a JSON object"):
        generation_defaults(tmp_path)


def test_one_line_whatever_is_in_there():
    line = not_applied({"temperature": 0.6, "bad_words_ids": [[1]] * 500})
    assert line.startswith("generation_config.json suggests temperature 0.6, bad_words_ids [[1], ")
    assert line.endswith(": not applied, requests decide")
    assert len(line) < 150


def test_a_loaded_model_tells_them_and_answers_as_without(tmp_path, cache, monkeypatch):
    folder = resolve_model(str(write_gguf(tmp_path / "m.gguf"))).folder
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    plain = LLM(str(folder), kv_cache_memory=1 << 24, plan="modules")
    [before] = plain.generate([[3, 4, 5]], params)
    assert plain.engine.info.generation_defaults == {}

    path = folder / "generation_config.json"
    given = {"do_sample": True, "temperature": 0.6}
    path.write_text(json.dumps(json.loads(path.read_text()) | given))
    told = LLM(str(folder), kv_cache_memory=1 << 24, plan="modules")
    assert told.generate([[3, 4, 5]], params) == [before]
    assert told.engine.info.generation_defaults == given

    monkeypatch.setattr("detinfer.runner.portable.ModelRunner", lambda _: told.engine.runner)
    findings = {one.name: one for one in doctor.examine(str(folder))}
    assert findings["sampling"].value == not_applied(given)
    assert findings["fingerprint"].value == before.system_fingerprint


def test_doctor_names_what_is_wrong_with_a_model(tmp_path):
    *_, last = doctor.examine(str(tmp_path / "nothing"))
    assert last.name == "model"
    assert "no such file or folder" in last.problem
