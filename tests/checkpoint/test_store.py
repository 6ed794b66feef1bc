"""Folders of the cache are whole or absent, whatever happens to the process that builds them."""

import errno
import logging
import os
import time
from pathlib import Path

import pytest
from gguf_samples import write_gguf
from interrupted import killed_midway, python, without_disk_space

from detinfer.checkpoint import files
from detinfer.checkpoint.loader import resolve_model
from detinfer.checkpoint.store import build_once, find_damage
from detinfer.errors import ConfigError, ModelLoadError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(cache):
    return cache / "models" / "tiny"


def fill(new: Path) -> None:
    (new / "a.bin").write_bytes(b"a" * 1000)
    (new / "b.txt").write_text("b")


def beside(folder: Path) -> list[str]:
    """What lies beside the folder, its lock aside."""
    return sorted(f.name for f in folder.parent.iterdir() if not f.name.endswith(".lock"))


def test_a_whole_folder_is_built_once(folder):
    build_once(folder, fill, "tiny")
    assert (folder / "a.bin").read_bytes() == b"a" * 1000
    build_once(folder, lambda new: pytest.fail("built again"), "tiny")
    assert beside(folder) == ["tiny"]


def test_others_may_read_what_was_built(folder):
    old = os.umask(0o022)
    try:
        build_once(folder, fill, "tiny")
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o755


def truncate(folder):
    os.truncate(folder / "a.bin", 10)


def overwrite_keeping_size_and_time(folder):
    path = folder / "a.bin"
    before = path.stat()
    time.sleep(0.02)  # past the granularity of file times
    path.write_bytes(b"b" * 1000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(folder):
    (folder / "a.bin").unlink()


def spoil_manifest(folder):
    (folder / "manifest.json").write_text("[")


def remove_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "a.bin has 10 bytes instead of 1000"),
        (overwrite_keeping_size_and_time, "a.bin has other contents"),
        (remove, "a.bin is missing"),
        (spoil_manifest, "cannot be parsed"),
        (remove_manifest, "manifest.json is missing"),
    ],
)
def test_damage_is_said_in_one_line_and_repaired(folder, caplog, spoil, words):
    build_once(folder, fill, "tiny")
    spoil(folder)
    assert words in str(find_damage(folder))
    with caplog.at_level(logging.WARNING):
        build_once(folder, fill, "tiny")
    assert [words in record.getMessage() for record in caplog.records] == [True]
    assert find_damage(folder) is None
    assert beside(folder) == ["tiny"]


def test_touching_a_file_is_not_damage(folder):
    build_once(folder, fill, "tiny")
    os.utime(folder / "a.bin", ns=(1, 1))
    build_once(folder, lambda new: pytest.fail("built again"), "tiny")


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing(folder, error):
    def build(new):
        fill(new)
        raise error

    with pytest.raises(type(error)):
        build_once(folder, build, "tiny")
    assert beside(folder) == []
    build_once(folder, fill, "tiny")
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, ModelLoadError, "no disk space left"),
        (errno.EDQUOT, ModelLoadError, "no disk space left"),
        (errno.EROFS, ConfigError, "cannot be written"),
        (errno.EACCES, ConfigError, "cannot be written"),
        (errno.EIO, ModelLoadError, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_errors_of_the_disk_are_one_line_and_leave_nothing(
    folder, monkeypatch, call, number, kind, words
):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    def build(new):
        fill(new)
        if call == "write":
            fail()

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=words) as caught:
        build_once(folder, build, "tiny")
    assert str(folder.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert beside(folder) == []


def test_a_cache_folder_that_is_a_file_is_named(cache):
    cache.write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be written.*DETINFER_CACHE"):
        build_once(cache / "models" / "tiny", fill, "tiny")
    assert cache.read_text() == "in the way"


def test_a_whole_folder_needs_no_writing(folder, monkeypatch):
    build_once(folder, fill, "tiny")

    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(Path, "mkdir", fail)
    build_once(folder, fill, "tiny")


def test_hashes_are_remembered_but_never_needed(cache, tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    expected = files.cached_sha256(path)
    monkeypatch.setattr(files, "sha256_file", lambda path: pytest.fail("read again"))
    assert files.cached_sha256(path) == expected
    monkeypatch.undo()
    for record in (cache / "hashes").iterdir():
        record.write_text("{")
    assert files.cached_sha256(path) == expected


def test_two_processes_build_once_and_the_second_waits(folder):
    code = """
import sys, time
from pathlib import Path
from detinfer.checkpoint.store import build_once
def build(new):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(1)
    (new / "a.bin").write_bytes(b"a")
build_once(Path(sys.argv[1]), build, "tiny")
"""
    log = folder.parent.parent / "log"
    log.parent.mkdir(parents=True)
    children = [python(code, str(folder), str(log)) for _ in range(3)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    assert log.read_text() == "built\n"
    assert find_damage(folder) is None
    assert beside(folder) == ["tiny"]


def test_a_conversion_killed_midway_is_cleaned_up_and_done_again(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf")
    assert killed_midway("detinfer.checkpoint.loader", path) == "converting weights\n"
    # Midway: the weights are there in part, under a name that nothing takes for a model.
    (partial,) = (cache / "models").glob(".*.partial-*/model.safetensors")
    assert partial.stat().st_size > 0
    assert not list((cache / "models").glob("gguf-*"))

    found = resolve_model(str(path))
    assert find_damage(found.folder) is None
    assert beside(found.folder) == [found.folder.name]


def test_a_disk_that_fills_up_midway_is_one_line_and_leaves_nothing(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf")
    without_disk_space(path)
    assert beside(cache / "models" / "x") == []
