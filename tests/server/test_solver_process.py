"""``detinfer serve --solver FILE``: solvers alone, in a process of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from recursive_models import CONFIGS, weights_of
from scripted_solvers import puzzles
from tiny_solver import EASY, HARD, host

from detinfer.errors import EngineDeadError, RequestError
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.solver_engine import SolverEngine
from detinfer.recursive.weights import save_weights

COMMAND = (sys.executable, "-m", "detinfer.cli", "serve", "--port", "0", "--threads", "1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("solver") / "tiny.safetensors"
    save_weights(path, CONFIGS["units"], weights_of(CONFIGS["units"]))
    return path


def engine_of(pid: int) -> int:
    """The process that runs the solvers, among a server's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [found] = [
        child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]
    return int(found)


def test_solvers_alone_are_served_by_a_process_whose_death_ends_the_server(weights):
    puzzle = puzzles("sudoku4", 1)[0]
    model = RecursiveModel.load(weights)
    engine = SolverEngine({"tiny": model})
    engine.add("a", "tiny", puzzle, SolveParams(max_steps=5))
    ended = []
    while engine.has_work:
        ended += [one.solution for one in engine.step()]
    [expected] = ended
    server = subprocess.Popen(
        [*COMMAND, "--solver", str(weights)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        lines = [server.stderr.readline()]
        while lines[-1] and "ready on" not in lines[-1]:
            lines.append(server.stderr.readline())
        url = re.search(r"http://127\.0\.0\.1:\d+", lines[-1])[0]
        assert f"solver tiny  fingerprint {model.system_fingerprint}" in lines[-1]
        assert httpx.get(f"{url}/health").status_code == 200
        body = {"grid": puzzle.text, "max_steps": 5}
        answer = httpx.post(f"{url}/v1/solve", json=body, timeout=60).json()
        assert answer["digest"] == expected.digest
        assert answer["grid"] == expected.grid
        many = httpx.post(f"{url}/v1/solve", json={**body, "grid": [puzzle.text] * 40}, timeout=60)
        assert {one["digest"] for one in many.json()} == {expected.digest}
        refused = httpx.post(f"{url}/v1/solve", json={"grid": "1234"}, timeout=60)
        assert refused.json()["error"]["message"] == "grid: has 4 cells, expected 16"
        [card] = httpx.get(f"{url}/v1/models").json()["data"]
        assert (card["id"], card["task"], card["accuracy"]) == ("tiny", "sudoku4", None)
        assert httpx.post(f"{url}/generate", json={"prompt": "a"}).status_code == 404
        told = {
            (one.name, one.labels.get("process"))
            for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
            for one in family.samples
        }
        assert ("process_resident_memory_bytes", "solver") in told
        os.kill(engine_of(server.pid), signal.SIGKILL)
        assert server.wait(60) == 1
        assert "was ended by SIGKILL" in server.stderr.read()
    finally:
        server.kill()
        server.communicate()


def test_a_solver_that_is_not_there_is_one_line(tmp_path):
    for name, message in (
        ("nothing-like-it", "model: got 'nothing-like-it', expected one of"),
        (str(tmp_path / "no.safetensors"), f"solver: {tmp_path}/no.safetensors: no such file"),
    ):
        done = subprocess.run(
            [*COMMAND, "--solver", name], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"detinfer: error: {message}")
        assert done.stderr.count("\n") == 1


def test_puzzles_wait_unread_and_those_that_wait_are_told_of_the_end():
    hosted = host("tiny")
    for at in range(70):
        hosted.add_request(str(at), "tiny", HARD.text, SolveParams(max_steps=500))
    hosted.step()
    assert hosted.started
    counts = hosted.stats()
    assert counts["running"] + counts["waiting"] == 70
    assert counts["waiting"] >= 6
    with pytest.raises(RequestError, match="is in use"):
        hosted.add_request("0", "tiny", EASY.text, SolveParams())
    ended = hosted.abort_all("the server is shutting down")
    assert len(ended) == 70
    assert all(isinstance(one.end, EngineDeadError) for one in ended)
    assert not hosted.has_unfinished()
