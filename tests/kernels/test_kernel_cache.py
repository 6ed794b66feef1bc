"""Compiled kernels on disk: whatever happened to a file, the answer is right, one line says so."""

import os
import random
import threading
import time

import numpy as np
import pytest

from detinfer.kernels.cpu import cache, jit

SECRET = 0x5EC2E7  # stands in the machine code


def secret(x):
    return x + SECRET


def halves(x):
    return x // 2


@pytest.fixture
def folder(monkeypatch, tmp_path):
    folder = tmp_path / "kernels"
    monkeypatch.setattr(jit, "_FOLDER", folder)
    cache._sweep.cache_clear()
    return folder


def start(function=secret):
    """A new start's first call: the answer to 1, and whether the kernel was on disk."""
    dispatcher = jit.kernel(function)
    return dispatcher(1), sum(dispatcher.stats.cache_hits.values()) == 1


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def flipped(content, position, bit=0):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


DAMAGES = {
    "empty": lambda content: b"",
    "shorter than a checksum": lambda content: content[:20],
    "a checksum alone": lambda content: content[:32],
    "half": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "a page of zeros": lambda content: content[:4096] + bytes(4096) + content[8192:],
    "zeros at its end": lambda content: content[: len(content) // 2].ljust(len(content), b"\0"),
    "its checksum flipped": lambda content: flipped(content, 3),
    "twice": lambda content: content * 2,
    "text": lambda content: b"<html>quota exceeded</html>\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_dropped_and_compiled_anew(folder, damage, capfd):
    assert start() == (1 + SECRET, False)
    assert start() == (1 + SECRET, True)
    path = only_file(folder)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert capfd.readouterr().err == ""
    assert start() == (1 + SECRET, False)
    line = f"detinfer: {path}: damaged kernel, dropped: compiling anew\n"
    assert capfd.readouterr().err == line
    assert start() == (1 + SECRET, True)
    assert capfd.readouterr().err == ""


def test_any_flipped_bit_is_found_before_anything_is_unpickled(folder, monkeypatch, capfd):
    start()
    path = only_file(folder)
    content = path.read_bytes()
    unpickled = []
    monkeypatch.setattr(cache.pickle, "loads", unpickled.append)
    dispatcher = jit.kernel(secret)
    signature, target = (jit.numba.typeof(1),), dispatcher.targetctx
    rng = random.Random(0)
    for _ in range(300):
        path.write_bytes(flipped(content, rng.randrange(len(content)), rng.randrange(8)))
        assert dispatcher._cache.load_overload(signature, target) is None
        assert not path.exists()
    assert not unpickled
    assert capfd.readouterr().err.count("\n") == 300


def with_another_secret(content):
    code = SECRET.to_bytes(4, "little")
    assert code in content
    return content.replace(code, (SECRET + 1).to_bytes(4, "little"))


def test_damaged_machine_code_is_not_run(folder, monkeypatch):
    start()
    path = only_file(folder)
    damaged = with_another_secret(path.read_bytes())
    path.write_bytes(damaged)
    assert start() == (1 + SECRET, False)
    # Negative control: without the checksum it is.
    path.write_bytes(damaged)
    monkeypatch.setattr(cache, "_checksum", lambda key, content: damaged[: cache._SIZE])
    assert start() == (2 + SECRET, True)


def test_a_kernel_under_the_name_of_another_is_damage(folder, capfd):
    start()
    mine = only_file(folder)
    assert start(halves) == (0, False)
    (other,) = set(folder.iterdir()) - {mine}
    mine.write_bytes(other.read_bytes())
    assert start() == (1 + SECRET, False)
    assert "damaged kernel" in capfd.readouterr().err


def test_what_a_killed_writer_left_is_not_read_and_goes(folder):
    start()
    path = only_file(folder)
    old, new = folder / "x.0000.part", folder / "x.0001.part"
    for part in (old, new):
        part.write_bytes(path.read_bytes()[:100])
    hours_ago = time.time() - 2 * cache._ABANDONED
    os.utime(old, (hours_ago, hours_ago))
    path.unlink()
    cache._sweep.cache_clear()  # a process later
    assert start() == (1 + SECRET, False)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def test_a_folder_in_a_files_place_is_no_end(folder, capfd):
    start()
    path = only_file(folder)
    path.unlink()
    path.mkdir()
    assert start() == (1 + SECRET, False)
    lines = capfd.readouterr().err.splitlines()
    assert "cannot be read (Is a directory): compiling anew" in lines[0]
    assert "kernel cannot be kept (Is a directory)" in lines[1]
    assert list(folder.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_compiles(folder, capfd):
    folder.write_text("a file in the folder's place")
    assert start() == (1 + SECRET, False)
    assert "kernel cannot be kept" in capfd.readouterr().err


def test_writers_at_once_leave_a_whole_file(folder):
    dispatchers = [jit.kernel(secret) for _ in range(4)]
    threads = [threading.Thread(target=d, args=(1,)) for d in dispatchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert start() == (1 + SECRET, True)
    only_file(folder)


def test_another_signature_has_a_file_of_its_own(folder):
    dispatcher = jit.kernel(secret)
    assert dispatcher(1) == 1 + SECRET
    assert dispatcher(np.float32(1)) == 1 + SECRET
    assert len(list(folder.iterdir())) == 2
