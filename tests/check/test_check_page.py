"""The pictures of the HTML report: where runs part, and how near candidates were."""

from __future__ import annotations

import re

import check_command
import leaks
import pytest
from check_command import check
from fake_runner import FakeRunner, fake_engine

from benchmarks.check_picture import draw
from detinfer.check import Check, EngineSubject, Target
from detinfer.check.margins import add_margins
from detinfer.check.pictures import heat_map, margin_chart
from detinfer.params import SamplingParams

__all__ = ["check"]

TARGETS = [
    Target("ABC", SamplingParams(max_tokens=8)),
    Target("DEF", SamplingParams(max_tokens=8, logprobs=3)),
]


def found(runner, runs=70):
    checking = Check(EngineSubject(fake_engine(runner=runner)), TARGETS, runs=runs, seed=5)
    checking.run()
    add_margins(checking)
    return checking.result()


def lines(picture, fill):
    """Places and sizes of the rectangles of one colour."""
    path = re.search(rf'fill="var\(--{fill}\)" d="([^"]*)"', picture)
    if path is None:
        return []
    return [tuple(map(float, one)) for one in
            re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", path[1])]  # fmt: skip


def test_the_heat_map_has_every_run_and_where_it_parts():
    prompt = found(leaks.Token()).prompts[0]
    picture = heat_map(prompt)
    same, other = lines(picture, "same"), lines(picture, "other")
    place = prompt.first_divergence.position
    assert {x for x, *_ in other} == {600 / 8 * place}
    assert {width for _, _, width, _ in other} == {600 / 8 * (8 - place)}
    # Of 70 runs each row shows two, and the one that differs most.
    assert len({y for _, y, *_ in same}) == 35
    assert "every row is 2 runs, the one that differs most" in picture


def test_other_logits_of_the_same_tokens_are_a_colour_of_their_own():
    for prompt in found(leaks.Slot(), runs=20).prompts:
        assert lines(heat_map(prompt), "near")
        assert not lines(heat_map(prompt), "other")


def test_without_a_difference_there_is_no_heat_map():
    for prompt in found(FakeRunner(), runs=10).prompts:
        assert heat_map(prompt) == ""


def test_margins_are_those_of_the_two_likeliest_of_each_token():
    result = found(FakeRunner(), runs=4)
    for prompt in result.prompts:
        assert len(prompt.margins) == len(prompt.expected.token_ids) >= 7
        assert min(prompt.margins) > 0
        picture = margin_chart(prompt)
        assert picture.count("v-") == len(prompt.margins)
        place = prompt.margins.index(min(prompt.margins)) + 1
        assert f"Least at token {place}: {min(prompt.margins):.6g}." in picture
    told = result.prompts[1].expected.logprobs
    top = [float.fromhex(one.top[0][1]) - float.fromhex(one.top[1][1]) for one in told]
    assert list(result.prompts[1].margins) == top
    assert result.prompts[0].to_json()["margins"] == result.prompts[0].margins


def test_a_report_has_them_all_and_nothing_from_elsewhere(check, tmp_path):
    path = tmp_path / "r.html"
    assert check("--report", str(path), "--mode", "both", runner=leaks.Token())[0] == 1
    text = path.read_text()
    for words in (
        "Unique answers by mode",
        "What the loads changed",
        "What it takes to differ",
        "the answers part at token 4",
        "Where runs part",
        "How far ahead the likeliest token is",
        "Negative control",
    ):
        assert words in text
    assert not re.search(r"(?:src|href)=|https?://|url\(|@import|<script", text)


def test_a_report_of_one_prompt_in_both_modes_makes_the_readme_s_picture(
    check, monkeypatch, tmp_path
):
    path = tmp_path / "r.html"
    flags = ("--report", str(path), "--mode", "both")
    with monkeypatch.context() as patch:
        patch.setattr(check_command, "SMALL", ["--runs", "9", "--max-tokens", "8"])
        check(*flags, "--prompt", "ABC", runner=leaks.Token())
    picture = draw(path.read_text())
    assert picture.count("<text") == picture.count("<g ") == 2
    assert picture.count("<path") >= 2
    check(*flags, runner=leaks.Token())  # two prompts
    with pytest.raises(ValueError, match="expected one prompt in two modes"):
        draw(path.read_text())


@pytest.mark.parametrize("tokens", [1, 900])
def test_short_and_long_answers_are_drawn(tokens):
    runner = leaks.Slot(num_pages=200, max_model_len=1000)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    checking = Check(EngineSubject(fake_engine(runner=runner), 8), [Target("ABC", params)], runs=8)
    checking.run()
    add_margins(checking)
    [prompt] = checking.result().prompts
    assert len(heat_map(prompt)) < 100_000
    assert margin_chart(prompt).count("v-") == tokens
