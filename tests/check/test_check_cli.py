"""The command: exit status, what it prints, and the files it leaves."""

import io
import json
import os
import re
from html.parser import HTMLParser

import leaks
import pytest
from check_command import SMALL, check, no_engine
from fake_runner import FakeRunner
from rich.console import Console

from detinfer import cli
from detinfer.check import Progress
from detinfer.check.display import progress_display

__all__ = ["check", "no_engine"]


def squeezed(text):
    return " ".join(text.split())


def test_reproducible_is_0(check):
    status, out, err = check()
    assert status == 0
    assert "ABC 30 1 1 none" in squeezed(out)
    assert "<b>& 30 1 1 none" in squeezed(out)
    assert "reproducible: 1 unique digest for each of 2 prompts, 60 deterministic runs" in out
    assert "first deterministic divergence" not in out
    assert "seed 7" in out
    assert "30 runs of 2 prompts in loads of up to 32 requests, seed 7" in err
    assert re.search(r"deterministic: 60/60 runs, [\d.]+/s, 1 digest a prompt", err)


def test_a_difference_is_1_and_says_what_differs(check):
    status, out, _ = check(runner=leaks.Token())
    assert status == 1
    assert "first deterministic divergence: prompt 1, run" in out
    assert "drawn again by --seed 7" in out
    assert "token 4 of the answer is the first that differs" in out
    assert "in the load: token 11, digest" in out
    assert "not reproducible: up to" in out
    assert "it takes batch size: made small, 2 requests in" in out


def test_a_difference_in_logits_alone_is_1(check):
    status, out, _ = check(runner=leaks.Slot())
    assert status == 1
    assert "the tokens agree, the logits do not" in out


def test_fast_is_judged_alone_and_only_beside_the_other(check):
    assert check("--mode", "fast", runner=leaks.OneMode())[0] == 1
    status, out, _ = check("--mode", "both", runner=leaks.OneMode())
    assert status == 0
    assert re.search(r"1 unique digest for each of 2 prompts.*; fast: up to \d+ digests", out)
    assert "first fast divergence" in out
    assert check("--mode", "both")[0] == 0


def test_the_seed_is_drawn_and_told(check, monkeypatch):
    monkeypatch.setattr("secrets.randbits", lambda bits: 123456)
    monkeypatch.setattr("check_command.SMALL", SMALL[:-2])
    status, out, err = check()
    assert status == 0
    assert "seed 123456" in out
    assert "seed 123456" in err


def test_concurrency_bounds_the_loads(check, tmp_path):
    path = tmp_path / "r.json"
    # With one request at a time there is nothing to leak.
    assert check("--concurrency", "1", "--report", str(path), runner=leaks.Token())[0] == 0
    assert json.loads(path.read_text())["loads"] == 60


def test_json_report(check, tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    status, _, _ = check("--report", str(path), "--mode", "both", runner=leaks.Token())
    assert status == 1
    report = json.loads(path.read_text())
    assert report["reproducible"] is False
    assert (report["runs"], report["seed"], report["judged_on"]) == (60, 7, "deterministic")
    assert report["system_fingerprint"] == "detinfer-test"
    assert report["unique_digests"] > 1
    assert report["first_divergence"]["position"] == 3
    assert report["first_divergence"]["load"]["rows"]
    assert report["shrunk"]["families"] == ["batch size"]
    assert len(report["shrunk"]["load"]["rows"]) == 2
    assert list(report["by_mode"]) == ["deterministic", "fast"]
    prompts = report["by_mode"]["deterministic"]["prompts"]
    assert [prompt["prompt"] for prompt in prompts] == ["ABC", "<b>&"]
    # Token ids stand in one line.
    assert f"[{', '.join(map(str, prompts[0]['expected']['token_ids']))}]" in path.read_text()
    assert sum(prompt["runs"] for prompt in prompts) == 60
    assert sorted(os.listdir(tmp_path)) == ["r.json", "r.repro.json"]


class Page(HTMLParser):
    """Collects what a browser would: nesting, attributes, squares by colour."""

    def __init__(self, text):
        super().__init__()
        self.open, self.squares, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag == "path":
            drawn = dict(attributes)
        if tag == "path" and "class" not in drawn:  # those are of other pictures
            self.squares.append((drawn["fill"], drawn["d"].count("M")))
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def render(check, tmp_path, **options):
    path = tmp_path / "r.html"
    check("--report", str(path), **options)
    text = path.read_text("utf-8")
    page = Page(text)
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "onclick", "srcset"}
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    return page


def test_html_report_of_a_sound_engine_has_one_colour(check, tmp_path):
    page = render(check, tmp_path)
    # One path a prompt, all of one colour, a square for every run.
    assert [count for _, count in page.squares] == [30, 30]
    assert len({fill for fill, _ in page.squares}) == 1
    assert "Reproducible: 60 runs" in page.text
    assert "<b>&" in page.text


def test_html_report_of_a_fault_has_a_colour_for_every_answer(check, tmp_path):
    page = render(check, tmp_path, runner=leaks.Slot())
    assert sum(count for _, count in page.squares) == 60
    assert len({fill for fill, _ in page.squares}) > 2
    assert "Not reproducible" in page.text
    assert "the tokens agree, the logits do not" in page.text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--report", "missing/r.json"], "--report: missing/r.json cannot be written (No such"),
        (["--report", "r.txt"], "--report: got 'r.txt', expected a .html, .json or .xml file"),
        (["--report", "folder.json"], "--report: folder.json is a folder"),
        (["--report", "file/r.html"], "--report: file/r.html cannot be written (Not a directory"),
        (["--prompt", "\udcff"], "--prompt: number 1 is not valid UTF-8"),
        (["--mode", "fast", "--no-fast-mode"], "--mode: fast runs only without --no-fast-mode"),
        (["--fast-neighbours", "1", "--no-fast-mode"], "--fast-neighbours: they run only without"),
        (["--url", "ftp://x"], "--url: got 'ftp://x', expected http://HOST:PORT"),
    ],
)
def test_bad_flags_are_one_line_and_status_2_before_the_work(
    flags, words, no_engine, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    assert cli.main(["check", *flags]) == 2
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("detinfer: error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_folder_is_found_before_the_work(no_engine, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert cli.main(["check", "--report", str(tmp_path / "r.json")]) == 2
    assert "cannot be written (Permission denied)" in capsys.readouterr().err


def test_a_full_disk_leaves_no_part_of_a_report(check, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detinfer.output_file.atomic_write", full)
    status, _, err = check("--report", str(tmp_path / "r.json"))
    assert status == 2
    assert "r.json cannot be written (No space left on device)" in err
    assert os.listdir(tmp_path) == []


def test_an_empty_prompt_is_status_2(check):
    status, _, err = check("--prompt", "")
    assert status == 2
    assert "prompt 3 of 3: prompt: got no tokens" in err


def test_a_failing_engine_is_status_2(check):
    status, out, err = check(runner=FakeRunner(fail_at=30))
    assert status == 2
    assert "injected fault" in err
    assert "reproducible" not in out


def test_a_terminal_shows_a_bar():
    terminal = io.StringIO()
    with progress_display(Console(file=terminal, force_terminal=True, width=100)) as show:
        show(
            Progress(
                "deterministic",
                loads=1,
                runs=20,
                total=80,
                unique_digests=2,
                divergent_runs=3,
                seconds=4.0,
            )
        )
    assert "20/80 runs, 5.0/s, 2 digests a prompt, 3 differ" in terminal.getvalue()
    assert "25%" in terminal.getvalue()
