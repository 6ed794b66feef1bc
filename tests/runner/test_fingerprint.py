"""The fingerprint follows all that bits depend on, and nothing else."""

import dataclasses
import os
import pickle
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from detinfer.config import EngineConfig
from detinfer.errors import ConfigError
from detinfer.runner.fingerprint import PACKAGES, PARTS, Fingerprint, make_fingerprint

VALUES = {name: f"{name} value" for name in PARTS} | {"contract": "portable-1"}


def test_its_form_is_fixed():
    name = Fingerprint(VALUES).system_fingerprint
    assert re.fullmatch(r"detinfer-0\.1\.0-portable-1-[0-9a-f]{12}", name)
    # Pinned: clients compare it between machines and versions.
    assert name == "detinfer-0.1.0-portable-1-286c4787f985"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_changes_it(part):
    other = Fingerprint(VALUES | {part: "something else"})
    assert other.system_fingerprint[-12:] != Fingerprint(VALUES).system_fingerprint[-12:]


def test_the_order_parts_are_given_in_does_not_change_it():
    backwards = dict(reversed(VALUES.items()))
    assert Fingerprint(backwards) == Fingerprint(VALUES)
    assert Fingerprint(backwards).system_fingerprint == Fingerprint(VALUES).system_fingerprint


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({k: v for k, v in VALUES.items() if k != "rope"}, "missing or unknown: rope"),
        (VALUES | {"threads": "2"}, "missing or unknown: threads"),
        (VALUES | {"dtype": 32}, "dtype: got 32"),
        (VALUES | {"dtype": ""}, "dtype: got ''"),
    ],
)
def test_parts_are_checked(parts, words):
    with pytest.raises(ConfigError, match=words):
        Fingerprint(parts)


def test_it_travels_between_processes():
    assert pickle.loads(pickle.dumps(Fingerprint(VALUES))) == Fingerprint(VALUES)


def test_no_setting_of_load_or_machine_is_a_part():
    settings = {field.name for field in dataclasses.fields(EngineConfig)}
    assert settings & set(PARTS) == {"dtype", "weights"}


def test_a_model_has_one_whatever_the_machine_does(default_model, monkeypatch):
    before = make_fingerprint(default_model, dtype="float32", rope="default", length=8192)
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    try:
        after = make_fingerprint(default_model, dtype="float32", rope="default", length=8192)
    finally:
        torch.set_num_threads(threads)
    assert after == before
    assert before.parts["weight_format"] == "packed Q4_1+Q8_0, bfloat16 from gguf F32"
    assert (before.parts["contract"], before.parts["profile"]) == ("portable-1", "portable")


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"rope": "linear 2"}, {"length": 4096}])
def test_the_runners_choices_are_in_it(default_model, change):
    choices = {"dtype": "float32", "rope": "default", "length": 8192}
    assert (
        make_fingerprint(default_model, **choices).system_fingerprint
        != make_fingerprint(default_model, **(choices | change)).system_fingerprint
    )


def test_where_a_model_lies_is_not_in_it(default_model, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in default_model.folder.iterdir():
        (moved / path.name).symlink_to(path)
    files = dataclasses.replace(
        default_model,
        folder=moved,
        name="other",
        weights=tuple(moved / Path(path).name for path in default_model.weights),
    )
    same = {"dtype": "float32", "rope": "default", "length": 8192}
    assert make_fingerprint(files, **same) == make_fingerprint(default_model, **same)


@pytest.mark.parametrize("package", PACKAGES)
def test_releases_that_decide_what_is_computed_are_in_it(default_model, monkeypatch, package):
    same = {"dtype": "float32", "rope": "default", "length": 8192}
    before = make_fingerprint(default_model, **same)
    assert before.parts[package] == version(package)
    monkeypatch.setattr(
        "detinfer.runner.fingerprint.version", lambda name: version(name) + ".post1"
    )
    assert make_fingerprint(default_model, **same).parts[package] != before.parts[package]


def test_a_package_that_is_not_there_is_said_to_be_none(default_model, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("detinfer.runner.fingerprint.version", missing)
    parts = make_fingerprint(default_model, dtype="float32", rope="default", length=8192).parts
    assert parts["llguidance"] == "none"
