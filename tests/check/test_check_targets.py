"""What is checked by default: every kind of request, on whatever fits."""

import dataclasses

import pytest
from fake_runner import fake_engine
from test_check_loads import BOUNDS

from detinfer import cli
from detinfer.check import Bounds, Target, default_targets
from detinfer.check.target import LENGTHS
from detinfer.engine.validation import check_request
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.params import SamplingParams

ROOMY = Bounds(
    vocab_size=49152,
    longest=8192,
    max_rows=32,
    allow_fast=True,
    can_constrain=True,
    can_score=True,
)


def by_name(bounds=ROOMY, max_tokens=32):
    return {target.name: target for target in default_targets(bounds, max_tokens)}


def test_every_kind_of_request_is_among_them():
    targets = by_name()
    asked = {name: target.params for name, target in targets.items()}
    assert asked["log-probabilities"].logprobs == 5
    assert asked["stop string"].stop
    plain = SamplingParams(max_tokens=32)
    assert asked["temperature"] == dataclasses.replace(plain, temperature=1.0, seed=20, logprobs=0)
    assert (asked["filters"].top_k, asked["filters"].top_p) == (50, 0.95)
    penalties = asked["penalties"]
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"):
        assert getattr(penalties, name) != getattr(plain, name)
    assert 0 < penalties.min_tokens < penalties.max_tokens
    assert set(penalties.stop_token_ids) < {token for token, _ in penalties.logit_bias}
    assert penalties.stop
    assert asked["page end"] == plain
    assert asked["schema"].json_schema
    assert asked["scored prompt"].prompt_logprobs is not None


def test_what_cannot_be_asked_is_left_out():
    plain = dataclasses.replace(ROOMY, can_constrain=False, can_score=False)
    assert {*by_name()} - {*by_name(plain)} == {"schema", "scored prompt"}


def test_two_long_prompts_differ_in_their_first_page_alone():
    targets = by_name()
    first, other = targets["long prompt"].prompt, targets["other beginning"].prompt
    assert len(first) == len(other) == 2100
    assert first[:PAGE_SIZE] != other[:PAGE_SIZE]
    assert first[PAGE_SIZE:] == other[PAGE_SIZE:]
    assert default_targets(ROOMY) == default_targets(ROOMY)


@pytest.mark.parametrize("max_tokens", [1, 2, 32, 200])
@pytest.mark.parametrize("longest", [256, 2131, 2132, 4000])
def test_what_has_no_text_can_be_served_by_any_model(longest, max_tokens):
    info = dataclasses.replace(fake_engine().info, max_model_len=longest, num_pages=longest)
    for target in default_targets(dataclasses.replace(BOUNDS, longest=longest), max_tokens):
        if isinstance(target.prompt, tuple):
            assert len(target.prompt) == min(LENGTHS[target.name], longest - max_tokens)
            check_request(target.prompt, target.params, info)


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (Target("a\nb", SamplingParams()), "a b"),
        (Target("a\nb", SamplingParams(), "name"), "name: a b"),
        (Target((1, 2), SamplingParams()), "token ids [1, 2]"),
        (Target((1,) * 2100, SamplingParams(), "long"), "long: 2,100 token ids"),
        (Target("x" * 99, SamplingParams()), "x" * 47 + "…"),
    ],
)
def test_labels(target, label):
    assert target.label == label


class Letters:
    """Any text as tokens of the fake runner."""

    def __init__(self, tokenizer):
        self.backend_tokenizer, self.get_vocab = tokenizer.backend_tokenizer, tokenizer.get_vocab

    def encode(self, text, add_special_tokens=True):
        return [byte % 90 for byte in text.encode()]


def test_the_command_says_how_often_the_long_ones_run_and_what_they_were_cut_to(
    monkeypatch, capsys, tmp_path
):
    engine = fake_engine()
    engine.tokenizer = Letters(engine.tokenizer)
    monkeypatch.setattr("detinfer.engine.engine.Engine", lambda config: engine)
    command = ["check", "--runs", "20", "--max-tokens", "8", "--seed", "7"]
    for name in ("r.json", "r.html"):
        assert cli.main([*command, "--report", str(tmp_path / name)]) == 0
        out, err = capsys.readouterr()
        assert (
            "20 runs of 9 prompts (scored prompt: 1, long prompt: 1, other beginning: 1) in loads "
            "of up to 32 requests, seed 7"
        ) in err
        assert "long prompt: 392 tokens, not 2,100: no more fit into the model's length" in err
        assert "1 unique digest for each of 9 prompts, 123 deterministic runs" in out
        text = (tmp_path / name).read_text()
        assert all(name in text for name in {*by_name()} - {"schema"})  # whose tokenizer has none
    assert "long prompt: 392 token ids" in text
