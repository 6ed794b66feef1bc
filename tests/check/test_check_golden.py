"""Golden digests: written once, they stand until a bit moves; then it is told which, and why."""

from __future__ import annotations

import json
from types import SimpleNamespace

import leaks
import pytest
from check_command import check, no_engine
from fake_runner import FakeRunner

from detinfer import cli

__all__ = ["check", "no_engine"]


class Release(FakeRunner):
    """Another release: other parts of the fingerprint, and other logits if ``moved``."""

    def __init__(self, moved=False, **parts):
        super().__init__()
        self.fingerprint = SimpleNamespace(parts=parts, system_fingerprint="detinfer-test")
        self._moved = moved

    def forward(self, batch):
        logits = super().forward(batch)
        return logits.neg() if self._moved else logits


@pytest.fixture
def golden(check, tmp_path):
    """A golden file of two prompts, and the command that compares with it."""
    path = tmp_path / "golden.json"
    runner = Release(weights="a", torch="1")
    assert check("--golden", str(path), "--update", runner=runner)[0] == 0
    told = json.loads(path.read_text())
    assert [one["prompt"] for one in told["answers"]] == ["ABC", "<b>&"]
    assert told["answers"][0]["params"] == {"max_tokens": 8}
    assert all(len(one["digest"]) == 64 for one in told["answers"])
    return path


def test_equal_bits_are_0_and_a_changed_part_is_told(check, golden):
    flags = ("--golden", str(golden), "--assert")
    status, out, _ = check(*flags, runner=Release(weights="a", torch="1"))
    assert status == 0
    assert f"golden: 2 of 2 digests are those of {golden}" in out
    assert "fingerprint part" not in out
    status, out, _ = check(*flags, runner=Release(weights="a", torch="2", plan="fused"))
    assert status == 0
    assert f"fingerprint part torch: 1 in {golden}, 2 now" in out
    assert f"fingerprint part plan: None in {golden}, fused now" in out


def test_a_bit_that_moved_is_1_and_named(check, golden):
    runner = Release(moved=True, weights="a", torch="2")
    status, out, _ = check("--golden", str(golden), "--assert", runner=runner)
    assert status == 1
    assert "reproducible: 1 unique digest" in out, "the answer is another, but one"
    assert "moved: prompt 1, ABC: digest" in out
    assert "moved: prompt 2, <b>&: digest" in out
    assert f"fingerprint part torch: 1 in {golden}, 2 now" in out
    assert f"golden: 0 of 2 digests are those of {golden}" in out


def test_a_file_of_other_bits_is_found(check, golden):
    told = json.loads(golden.read_text())
    told["answers"][1]["digest"] = told["answers"][0]["digest"]
    golden.write_text(json.dumps(told))
    runner = Release(weights="a", torch="1")
    status, out, _ = check("--golden", str(golden), "--assert", runner=runner)
    assert status == 1
    assert "moved: prompt 2" in out
    assert "moved: prompt 1" not in out
    assert "golden: 1 of 2" in out


def test_what_has_no_one_answer_is_not_written(check, golden):
    before = golden.read_text()
    status, out, _ = check("--golden", str(golden), "--update", runner=leaks.Token())
    assert status == 1
    assert f"golden: {golden} not written, there is no one answer" in out
    assert golden.read_text() == before


def test_another_model_or_prompt_is_refused_before_the_work(check, golden):
    flags = ("--golden", str(golden), "--assert")
    status, out, err = check(*flags, runner=Release(weights="b", torch="1"))
    assert (status, out) == (2, "")
    assert (
        err == f"detinfer: error: --golden: {golden}: of another model: weights a, this one has b\n"
    )
    status, out, err = check(*flags, "--prompt", "new", runner=Release(weights="a", torch="1"))
    assert (status, out) == (2, "")
    assert err == f"detinfer: error: --golden: {golden}: has no answer to number 3, 'new'\n"


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        (["--golden", "x.json"], None, "--golden: expected a file, and --update or --assert"),
        (["--update"], None, "--golden: expected a file, and --update or --assert"),
        (["--golden", "x.json", "--assert"], None, "--golden: x.json: cannot be read (No such"),
        (["--golden", "x.json", "--assert"], "", "--golden: x.json: not a golden file"),
        (["--golden", "x.json", "--assert"], "[]", "--golden: x.json: not a golden file"),
        (["--golden", "x.json", "--assert"], "[" * 99999, "--golden: x.json: not a golden file"),
        (
            ["--golden", "x.json", "--assert"],
            '{"form": "detinfer-golden-2", "fingerprint": {}, "answers": []}',
            "--golden: x.json: form 'detinfer-golden-2', expected 'detinfer-golden-1'",
        ),
        (
            ["--golden", "x.json", "--assert"],
            '{"form": "detinfer-golden-1", "fingerprint": [], "answers": []}',
            "--golden: x.json: not a golden file",
        ),
        (["--golden", "no/x.json", "--update"], None, "--golden: no/x.json cannot be written"),
        (["--golden", "x", "--update", "--mode", "fast"], None, "--golden: fast answers have no"),
    ],
)
def test_bad_input_is_one_line_before_the_work(
    flags, text, said, no_engine, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert cli.main(["check", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"detinfer: error: {said}")
    assert err.count("\n") == 1
