"""The JUnit report, read as CI systems read it."""

from __future__ import annotations

from xml.etree import ElementTree

import leaks
from check_command import check

__all__ = ["check"]


def read(check, tmp_path, *flags, **options):
    path = tmp_path / "r.xml"
    status, _, _ = check("--report", str(path), *flags, **options)
    return status, ElementTree.parse(path).getroot()


def test_a_case_a_prompt(check, tmp_path):
    status, root = read(check, tmp_path)
    assert status == 0
    [suite] = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == (
        *("deterministic", "2", "0"),
    )
    facts = {one.get("name"): one.get("value") for one in suite.find("properties")}
    assert facts["system_fingerprint"] == "detinfer-test"
    assert facts["seed"] == "7"
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names == ["prompt 1: ABC", "prompt 2: <b>&"]
    assert "30 runs, 1 unique outputs, 1 unique digests" in suite.find("testcase/system-out").text
    assert float(suite.get("time")) > 0


def test_a_difference_is_a_failure_that_says_what_differs(check, tmp_path):
    status, root = read(check, tmp_path, runner=leaks.Token())
    assert status == 1
    failures = [*root.iter("failure")]
    assert len(failures) == int(root[0].get("failures")) > 0
    assert "token 4 of the answer is the first that differs" in failures[0].get("message")
    assert "alone:" in failures[0].text


def test_what_is_not_judged_does_not_fail(check, tmp_path):
    status, root = read(check, tmp_path, "--mode", "both", runner=leaks.OneMode())
    assert status == 0
    assert [suite.get("name") for suite in root] == ["deterministic", "fast"]
    assert [*root.iter("failure")] == []


def test_control_characters_of_an_answer_are_no_bad_xml(check, tmp_path, monkeypatch):
    monkeypatch.setattr("detinfer.check.target.Target.label", "a\x01b")
    _, root = read(check, tmp_path)
    assert next(root.iter("testcase")).get("name") == "prompt 1: a\ufffdb"
