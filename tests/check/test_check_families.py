"""Each family of change can be drawn, left out, taken away and counted."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

import leaks
import pytest
from check_command import check, no_engine
from fake_runner import FakeRunner, fake_engine
from test_check_loads import BOUNDS, TARGETS, rows_of

from detinfer import cli
from detinfer.check import Check, EngineSubject, Target, draw_loads
from detinfer.check.control import control
from detinfer.check.families import FAMILIES, NAMES, in_load, named, only
from detinfer.check.load import Placement
from detinfer.config import EngineConfig
from detinfer.errors import ConfigError, DetinferError
from detinfer.params import SamplingParams

__all__ = ["check", "no_engine"]

ROOMY = dataclasses.replace(
    BOUNDS, num_pages=40, threads=4, can_spoil=True, can_restart=True, can_constrain=True
)


def draw(families=FAMILIES, bounds=ROOMY, runs=1000):
    return list(draw_loads(TARGETS, runs, bounds, 1, families=families))


def test_every_family_is_drawn():
    drawn = {family for load in draw() for family in in_load(load, ROOMY)}
    assert drawn == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_a_family_that_is_left_out_is_in_no_load_and_every_other_still_is(family):
    others = [one for one in FAMILIES if one is not family]
    loads = draw(others, runs=200)
    drawn = {one for load in loads for one in in_load(load, ROOMY)}
    assert family not in drawn
    assert sum(row.target == 0 for row in rows_of(loads)) == 200
    if family.name not in ("batch", "neighbours"):  # without whom there is no other either
        assert drawn >= {one for one in others if one.name not in ("restart", "failures")}


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_what_is_taken_away_is_gone_and_little_by_little(family):
    for load in draw(runs=60):
        less = family.without(load, ROOMY)
        assert not family.is_in(less, ROOMY)
        if family.is_in(load, ROOMY):
            first = next(family.changes(load, ROOMY))
            assert first != load
            assert sum(row.target is not None for row in first.rows) >= 1


def test_one_family_alone_leaves_a_load_as_it_is_by_default_but_for_that():
    for load in draw(named(["chunk"])):
        assert len(load.rows) == 1
        assert {one.name for one in in_load(load, ROOMY)} <= {"chunk"}
        chunk = {"max_chunk": None, "max_num_batched_tokens": BOUNDS.max_num_batched_tokens}
        plain = dataclasses.replace(load.placement, **chunk)
        assert (plain.cold, plain.page_seed, plain.pages, plain.spoiled) == (
            True,
            None,
            None,
            False,
        )


def test_only_is_a_load_without_the_others():
    load = next(iter(draw()))
    kept = only(load, ROOMY, named(["batch", "slot", "order"]))
    assert {one.name for one in in_load(kept, ROOMY)} <= {"batch", "slot", "order", "neighbours"}
    assert len(kept.rows) == len(load.rows)


def test_pages_are_scarce_and_enough_for_the_longest():
    scarce = [load for load in draw() if load.placement.pages is not None]
    assert len(scarce) > 3
    for load in scarce:
        assert all(len(row.prompt) + row.params.max_tokens <= 64 * load.placement.pages
                   for row in load.rows)  # fmt: skip
        assert load.placement.pages < ROOMY.num_pages


@pytest.mark.parametrize(("names", "said"), [([], "got none"), (["batch", "x"], "got 'x'")])
def test_unknown_families_are_named_and_the_known_ones_listed(names, said):
    with pytest.raises(ConfigError, match=f"families: {said}, expected some of batch, chunk"):
        named(names)


@pytest.mark.parametrize("given", ["x", "", "batch,,slot", "batch,Slot"])
def test_the_flag_refuses_what_it_does_not_know_before_anything_loads(given, no_engine, capsys):
    assert cli.main(["check", "--families", given]) == 2
    err = capsys.readouterr().err
    assert err.startswith("detinfer: error: --families: got ")
    assert err.endswith(f"expected some of {', '.join(NAMES)}\n")
    assert err.count("\n") == 1


def test_fast_neighbours_need_the_families_they_are_of(check):
    status, _, err = check("--families", "batch,slot", "--fast-neighbours", "2")
    assert status == 2
    assert "without the families batch, neighbours and mode" in err


@pytest.mark.parametrize(
    ("leak", "without"), [(leaks.Token, "batch"), (leaks.BatchSize, "batch"), (leaks.Slot, "batch")]
)
def test_a_fault_is_found_with_its_family_and_not_without(check, leak, without):
    others = ",".join(name for name in NAMES if name != without)
    assert check(runner=leak())[0] == 1
    assert check("--families", others, runner=leak())[0] == 0


def counts(report):
    return {name: (one["runs"], one["unique_digests"], one["divergent_runs"])
            for name, one in report["by_mode"]["deterministic"]["families"].items()}  # fmt: skip


def test_reports_count_runs_and_digests_by_family(check, tmp_path):
    path, page, cases = (tmp_path / name for name in ("r.json", "r.html", "r.xml"))
    for one in (path, page, cases):
        _, out, _ = check("--report", str(one), runner=leaks.Token())
    report = json.loads(path.read_text())
    found = counts(report)
    assert found["batch"][0] >= found["batch"][2] > 50
    assert found["batch"][1] > 1
    assert all(runs >= divergent for runs, _, divergent in found.values())
    assert report["families"] == list(NAMES)
    assert f"batch size (batch) {found['batch'][0]}" in " ".join(out.split())
    assert "batch size" in page.read_text()
    [suite] = ElementTree.parse(cases).getroot()
    facts = {one.get("name"): one.get("value") for one in suite.find("properties")}
    assert facts["family batch runs"] == str(found["batch"][0])
    assert facts["family batch unique digests"] == str(found["batch"][1])


def test_without_a_fault_every_family_has_one_digest(check, tmp_path):
    path = tmp_path / "r.json"
    assert check("--report", str(path))[0] == 0
    found = counts(json.loads(path.read_text()))
    assert len(found) > 10
    assert {digests for _, digests, _ in found.values()} == {1}


@pytest.mark.parametrize(
    ("runner", "flags", "words"),
    [
        (leaks.OneMode, [], "negative control: fast mode, PyTorch's own kernels: up to 2 digests"),
        (
            leaks.OneMode,
            ["--mode", "both"],
            "negative control: fast mode, PyTorch's own kernels: up to ",
        ),
        (leaks.FakeRunner, [], "none of 8 runs differs: such loads do not tell it from ours"),
    ],
)
def test_a_negative_control_is_in_every_report(check, tmp_path, runner, flags, words):
    texts = []
    for name in ("r.json", "r.html", "r.xml"):
        status, out, _ = check("--report", str(tmp_path / name), *flags, runner=runner())
        assert status == 0
        texts.append((tmp_path / name).read_text())
        assert words in out
    told = json.loads(texts[0])["control"]
    assert told["possible"]
    assert (told["divergent_runs"] > 0) is (runner is leaks.OneMode)
    assert all("control" in text for text in texts)


def test_where_there_is_no_fast_mode_the_control_says_so():
    engine = fake_engine(EngineConfig(allow_fast=False))
    check = Check(EngineSubject(engine), [Target("ABC", SamplingParams(max_tokens=4))], runs=2)
    check.run()
    told = control(check)
    assert told.to_json()["possible"] is False
    assert told.told == "negative control: not possible, fake has no fast mode to compare with"


def test_an_engine_is_put_back_as_it_was():
    engine = fake_engine()
    limits = engine.scheduler.limits
    subject = EngineSubject(engine, 8, lambda: fake_engine())
    check = Check(subject, [Target("ABC" * 40, SamplingParams(max_tokens=4))], runs=60, seed=1)
    assert check.run().reproducible
    assert engine.scheduler.limits == limits
    assert engine.block_manager.num_free == engine.block_manager.num_pages


def test_a_fresh_engine_must_be_the_same_one():
    class Other(FakeRunner):
        def __init__(self):
            super().__init__()
            self.fingerprint.system_fingerprint = "other"

    subject = EngineSubject(fake_engine(), 8, lambda: fake_engine(runner=Other()))
    load = next(iter(draw(bounds=dataclasses.replace(ROOMY, num_pages=None), runs=1)))
    again = dataclasses.replace(load.placement, restarted=True)
    assert isinstance(again, Placement)
    with pytest.raises(DetinferError, match="made anew, the fingerprint detinfer-test is other"):
        subject.play(dataclasses.replace(load, placement=again))
