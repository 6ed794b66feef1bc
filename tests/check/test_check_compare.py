"""Two reports side by side: what differs is named, and what is no report is one line."""

from __future__ import annotations

import json
from pathlib import Path

import leaks
import pytest
from check_command import check
from fake_runner import FakeRunner

from detinfer import cli

__all__ = ["check"]


class Other(FakeRunner):
    """A model that answers otherwise, and says so."""

    def __init__(self):
        super().__init__()
        self.fingerprint.parts = {"profile": "portable", "weights": "other"}

    def logits_of(self, history, batch):
        return -super().logits_of(history, batch)


@pytest.fixture
def reports(check, tmp_path):
    def write(name, *flags, runner=None):
        path = tmp_path / name
        check("--report", str(path), *flags, runner=runner)
        return str(path)

    return write


def compare(capsys, *paths):
    status = cli.main(["check", "--compare", *paths])
    return status, *capsys.readouterr()


def test_equal_reports_are_0_though_other_loads_were_drawn(reports, capsys):
    one, other = reports("a.json"), reports("b.json", "--seed", "8", "--runs", "9")
    status, out, _ = compare(capsys, one, other)
    assert status == 0
    assert out == f"2 of 2 prompts have the same answer in {one} and {other}\n"


def test_what_differs_is_named_and_is_1(reports, capsys):
    one, other = reports("a.json"), reports("b.json", runner=Other())
    status, out, _ = compare(capsys, one, other)
    assert status == 1
    assert "ABC: texts and digests differ: " in out
    assert "fingerprint part weights: None, other" in out
    assert out.endswith(f"0 of 2 prompts have the same answer in {one} and {other}\n")


def test_a_digest_alone_is_a_difference_too(reports, capsys):
    one = reports("a.json")
    told = json.loads(Path(one).read_text())
    told["by_mode"]["deterministic"]["prompts"][1]["expected"]["digest"] = "0" * 64
    other = one.replace("a.json", "b.json")
    Path(other).write_text(json.dumps(told))
    status, out, _ = compare(capsys, one, other)
    assert status == 1
    assert "<b>&: digests differ: " in out
    assert "1 of 2 prompts have the same answer" in out


def test_a_fault_of_one_of_them_is_not_what_is_compared(reports, capsys):
    # What each prompt gives alone is the same; which loads differ, the report itself says.
    assert compare(capsys, reports("a.json"), reports("b.json", runner=leaks.BatchSize()))[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("", "not a report of detinfer check --report FILE.json"),
        ("[]", "not a report of"),
        ("[" * 99_999, "not a report of"),
        ("{}", "form None, expected detinfer-check-1"),
        ('{"form": "detinfer-check-2"}', "form detinfer-check-2, expected detinfer-check-1"),
        ('{"form": "detinfer-check-1"}', "not a report of"),
        ('{"form": "detinfer-check-1", "version": "1", "judged_on": "x", "fingerprint": 3}', "not"),
    ],
)
def test_what_is_no_report_is_2(text, words, reports, tmp_path, capsys):
    one, other = reports("a.json"), tmp_path / "b.json"
    if text is not None:
        other.write_text(text)
    for paths in ((one, str(other)), (str(other), one)):
        status, out, err = compare(capsys, *paths)
        assert (status, out) == (2, "")
        assert err.startswith(f"detinfer: error: --compare: {other}: {words}")
        assert err.count("\n") == 1


def test_reports_of_other_prompts_are_2(reports, capsys):
    one, other = reports("a.json"), reports("b.json", "--prompt", "D")
    for paths in ((one, other), (other, one)):
        status, _, err = compare(capsys, *paths)
        assert status == 2
        assert "has no answer to 'D', which" in err


def test_reports_of_other_modes_are_2(reports, capsys):
    one, other = reports("a.json"), reports("b.json", "--mode", "fast")
    status, _, err = compare(capsys, one, other)
    assert status == 2
    assert "is of deterministic runs, " in err
