"""What a check leaves where it found a difference shows it again."""

from __future__ import annotations

import json

import leaks
import pytest
from check_command import check, no_engine

from detinfer import cli

__all__ = ["check", "no_engine"]


@pytest.fixture
def repro(check, tmp_path):
    status, _, err = check("--report", str(tmp_path / "r.html"), runner=leaks.Slot())
    assert status == 1
    path = tmp_path / "r.repro.json"
    assert f"played again by detinfer check --repro {path}" in err
    return path


def test_the_difference_is_shown_again_where_the_fault_is_and_only_there(check, repro):
    told = json.loads(repro.read_text())
    assert (len(told["rows"]), told["row"]) == (4, 3)
    assert told["takes"] == ["batch size", "slot"]
    status, out, _ = check("--repro", str(repro), runner=leaks.Slot())
    assert status == 1
    assert "differs: the tokens agree, the logits do not" in out
    assert f"alone:       digest {told['digests']['alone'][:16]}" in out
    assert f"in the load: digest {told['digests']['in the load'][:16]}" in out
    status, out, _ = check("--repro", str(repro))
    assert status == 0
    assert "equal" in out


def test_there_is_no_repro_file_without_a_difference(check, tmp_path):
    assert check("--report", str(tmp_path / "r.html"))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": "x"}, "form 'x', expected 'detinfer-repro-1'"),
        ({"row": 9}, "not a repro file"),
        ({"rows": []}, "not a repro file"),
        ({"placement": {"max_chunk": "x"}}, "not a repro file"),
        ({"placement": {"other": 1}}, "not a repro file"),
        (
            {"rows": [{"prompt": "A", "params": {"max_tokens": 0}, "arrival": 0}], "row": 0},
            "not a repro file (max_tokens: got 0",
        ),
        ({"noun": "puzzle"}, "not a repro file"),
    ],
)
def test_an_edited_file_is_one_line(repro, change, said, no_engine, capsys):
    repro.write_text(json.dumps({**json.loads(repro.read_text()), **change}))
    assert cli.main(["check", "--repro", str(repro)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"detinfer: error: --repro: {repro}: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        (None, [], "--repro: x.json: cannot be read (No such file"),
        ("", [], "--repro: x.json: not a repro file"),
        ("[" * 99999, [], "--repro: x.json: not a repro file"),
        ("{}", ["--url", "http://x"], "--repro: a load is played in this process"),
    ],
)
def test_bad_input_is_one_line(text, flags, said, no_engine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert cli.main(["check", "--repro", "x.json", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"detinfer: error: {said}")
