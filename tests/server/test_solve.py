"""``POST /v1/solve``: what is answered, what is refused, and what is told of it elsewhere."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from tiny_solver import BROKEN, EASY, HARD, TinySolver

from detinfer.config import ServerConfig
from detinfer.server.app import create_app

SOLVERS = ("solvers",)
BOTH = ("language model", "solvers")


@pytest.fixture
def make(make_client):
    """A client of solvers, alone unless ``engine`` is given."""

    def client(solver=None, engine=None, **options):
        made = make_client(engine, loading=engine is None, **options)
        service = made.app.state.service
        service.solver = solver or TinySolver()
        service.serves = SOLVERS if engine is None else BOTH
        return made

    return client


def solve(client, body, status=200, **options):
    response = client.post("/v1/solve", body, **options)
    assert response.status_code == status, response.text
    return response.json()


def refusal(client, body, status=400):
    error = solve(client, body, status)["error"]
    assert "\n" not in error["message"]
    return error


def events(response):
    *lines, last = [one for one in response.text.split("\n\n") if one]
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_an_answer_says_what_was_found_and_proves_it(make):
    response = make().post("/v1/solve", {"model": "tiny", "grid": EASY.text})
    value = response.json()
    identity, created = value.pop("id"), value.pop("created")
    assert identity.startswith("solve-")
    assert created > 0
    digest = value.pop("digest")
    assert len(digest) == 64
    grid = value.pop("grid")
    assert EASY.task.holds(EASY.board[None], EASY.task.parse(grid)[None])[0]
    assert value == {
        "object": "solution",
        "model": "tiny",
        "status": "solved",
        "solution": grid,
        "puzzle": EASY.text,
        "valid": True,
        "clues_kept": True,
        "steps": 2,
        "halted_by": "verified",
        "rollout": 0,
        "q": {"value": 2.5, "hex": "40200000"},
        "reason": None,
        "trace": None,
        "deterministic": True,
        "system_fingerprint": "detinfer-test-tiny",
        "usage": {"steps": 2},
    }
    assert response.headers["x-detinfer-digest"] == digest
    assert response.headers["x-detinfer-deterministic"] == "true"


def test_what_is_not_solved_is_not_called_a_solution(make):
    value = solve(make(), {"grid": HARD.text, "max_steps": 3})
    assert (value["status"], value["solution"], value["steps"]) == ("unsolved", None, 3)
    assert (value["halted_by"], value["clues_kept"], value["valid"]) == ("max_steps", True, False)
    assert value["reason"] == "the model found no answer that is right"


def test_a_list_is_answered_in_its_order_and_each_as_alone(make):
    client = make()
    many = solve(client, {"grid": [HARD.text, EASY.text, HARD.text]})
    assert [one["puzzle"] for one in many] == [HARD.text, EASY.text, HARD.text]
    alone = [solve(client, {"grid": one})["digest"] for one in (HARD.text, EASY.text, HARD.text)]
    assert [one["digest"] for one in many] == alone
    assert alone[0] == alone[2] != alone[1]
    assert len({one["id"] for one in many}) == 3


def test_a_stream_tells_of_every_step_and_ends_with_the_whole_answer(make):
    client = make()
    body = {"grid": EASY.text, "halt": "fixed", "max_steps": 4}
    whole = solve(client, {**body, "trace": True})
    response = client.post("/v1/solve", {**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *steps, last = events(response)
    assert steps == whole["trace"]
    assert [one["step"] for one in steps] == [1, 2, 3, 4]
    assert [one["changed"] for one in steps] == [0, int((EASY.board == 0).sum()), 0, 0]
    assert steps[0]["violations"] > 0 == steps[1]["violations"]
    assert steps[-1]["chain"] == last["digest"] == whole["digest"]
    assert steps[0]["q"] == {"value": -1.5, "hex": "bfc00000"}
    assert last["trace"] is None  # it was not asked for
    assert {**last, "id": 0, "created": 0} == {**whole, "trace": None, "id": 0, "created": 0}


def test_a_stream_of_several_says_which(make):
    client = make()
    got = events(client.post("/v1/solve", {"grid": [HARD.text, EASY.text], "stream": True}))
    assert {one["index"] for one in got} == {0, 1}
    assert {one["index"]: one["status"] for one in got if "status" in one} == {
        0: "unsolved",
        1: "solved",
    }


def test_every_field_reaches_the_solver(make):
    solver = TinySolver("one", "two")
    body = {
        "model": "two",
        "grid": EASY.text,
        "max_steps": 5,
        "halt": "stable",
        "halt_threshold": 0.5,
        "stable_steps": 3,
        "rollouts": 2,
        "noise": 0.25,
        "seed": 2**64 - 1,
        "trace": True,
        "deterministic": False,
    }
    value = solve(make(solver), body)
    [(model, params, deterministic)] = solver.asked
    assert (model, deterministic) == ("two", False)
    given = {name: one for name, one in body.items() if hasattr(params, name)}
    assert {name: getattr(params, name) for name in given} == given
    assert len(given) == 8
    assert (value["deterministic"], value["system_fingerprint"]) == (False, "detinfer-fast-two")
    assert len(value["trace"]) == value["steps"] == value["usage"]["steps"]


def edited(cells):
    board = EASY.board.copy()
    board[:] = 0
    for cell, value in cells.items():
        board[cell] = value
    return EASY.task.render(board)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"grid": EASY.text[:-1]}, "grid", "grid: has 15 cells, expected 16"),
        ({"grid": "x" + EASY.text[1:]}, "grid", "grid: cell 1 is 'x'"),
        ({"grid": ""}, "grid", "grid: has 0 cells, expected 16"),
        ({"grid": edited({0: 1, 3: 1})}, "grid", "grid: row 1 has 1 more than once"),
        ({"grid": edited({})}, "grid", "grid: got no clue at all"),
        ({"grid": edited({0: 1})}, "grid", "grid: got a board with more than one solution"),
        ({"grid": []}, "grid", "grid: got 0 puzzles, expected 1 to 1024"),
        ({"grid": [EASY.text] * 10_000}, "grid", "grid: got 10000 puzzles, expected 1 to 1024"),
        ({"grid": [EASY.text] * 129}, "grid", "grid: got 129 puzzles, this server has room for"),
        ({"grid": None}, "grid", "grid: missing"),
        ({"grid": 5}, "grid", "grid: got 5, expected a string or a list of strings"),
        ({"max_steps": 0}, "max_steps", "max_steps: got 0, expected an integer in 1..1024"),
        ({"max_steps": 10**9}, "max_steps", "max_steps: got 1000000000, expected an integer in"),
        ({"max_steps": 1.5}, "max_steps", "max_steps: got 1.5, expected an integer"),
        ({"noise": -0.1}, "noise", "noise: got -0.1, expected a number in 0..100"),
        ({"rollouts": 65}, "rollouts", "rollouts: got 65, expected an integer in 1..64"),
        ({"halt": "soon"}, "halt", "halt: got \"soon\", expected 'fixed', 'q', 'verified' or"),
        ({"stable_steps": 1}, "stable_steps", "stable_steps: got 1, expected an integer in 2..1"),
        ({"seed": -1}, "seed", "seed: got -1, expected an integer in 0.."),
        ({"trace": 1}, "trace", "trace: got 1, expected true or false"),
        ({"puzzle": "1"}, "puzzle", "puzzle: unknown field"),
        ({"max_step": 1}, "max_step", "max_step: unknown field, did you mean max_steps?"),
        (
            {"grid": [EASY.text] * 100, "rollouts": 64, "noise": 1.0, "max_steps": 1024},
            "max_steps",
            "max_steps: got 100 puzzles of 64 x 1024 steps, expected at most 1048576 in a call",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(make, fields, param, message):
    solver = TinySolver()
    client = make(solver)
    for stream in (False, True):
        error = refusal(client, {"grid": EASY.text, **fields, "stream": stream})
        assert error["message"].startswith(message), error
        assert error["param"] == param
    assert not solver.open
    assert solver._host.stats()["running"] == solver._host.stats()["waiting"] == 0


def test_one_of_a_list_that_is_no_board_is_named_and_the_others_are_given_up(make):
    solver = TinySolver()
    client = make(solver)
    error = refusal(client, {"grid": [HARD.text, HARD.text, "1", HARD.text]})
    assert error["message"] == "grid[2]: has 1 cells, expected 16"
    assert not solver.open
    # In a stream the others' first steps may have been told of before it was read.
    response = client.post("/v1/solve", {"grid": [HARD.text, "1"], "stream": True})
    assert events(response)[-1]["error"]["message"] == "grid[1]: has 1 cells, expected 16"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_noise_that_is_no_number_is_refused(make, number):
    body = f'{{"grid": "{EASY.text}", "noise": {number}}}'.encode()
    assert refusal(make(), body)["type"] == "invalid_request_error"


def test_an_unknown_model_is_a_404_and_one_of_several_must_be_named(make):
    error = refusal(make(), {"model": "other", "grid": EASY.text}, 404)
    assert error["message"] == "model: got 'other', expected 'tiny'"
    assert error["code"] == "model_not_found"
    client = make(TinySolver("one", "two"))
    assert (
        refusal(client, {"grid": EASY.text})["message"]
        == "model: missing, expected one of one, two"
    )
    error = refusal(client, {"model": "tiny", "grid": EASY.text}, 404)
    assert error["message"] == "model: got 'tiny', expected 'one' or 'two'"


def test_fast_answers_are_refused_where_there_is_no_fast_mode(make):
    error = refusal(make(TinySolver(allow_fast=False)), {"grid": EASY.text, "deterministic": False})
    assert error["param"] == "deterministic"


def test_a_board_without_any_solution_is_said_to_have_none_and_nothing_runs(make):
    # The first cell sees every value, but no two clues clash.
    puzzle = edited({2: 1, 3: 2, 8: 3, 12: 4})
    value = solve(make(), {"grid": puzzle})
    assert (value["status"], value["steps"], value["q"]) == ("unsolvable", 0, None)
    assert value["reason"] == "the board has no solution"


def test_a_model_that_gives_no_number_is_a_500(make):
    error = refusal(make(), {"grid": BROKEN.text}, 500)
    assert error["code"] == "generation_failed"
    assert "NaN" in error["message"]


def test_a_full_queue_is_a_429_that_says_when_to_come_back(make):
    client = make(TinySolver(capacity=2, delay=0.0))

    async def scenario():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            body = {"grid": [HARD.text] * 2, "max_steps": 1000}
            running = asyncio.create_task(http.post("/v1/solve", json=body))
            while len(client.app.state.service.solver.open) < 2:
                await asyncio.sleep(0)
            refused = await http.post("/v1/solve", json={"grid": EASY.text})
            return refused, await running

    refused, answered = asyncio.run(scenario())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert answered.status_code == 200


def test_a_client_that_leaves_gives_its_puzzles_up(make):
    solver = TinySolver(delay=0.01)
    client = make(solver)

    async def leave(stream):
        sent, left = [], asyncio.Event()
        body = json.dumps({"grid": [HARD.text] * 3, "max_steps": 1000, "stream": stream}).encode()
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if asked:
                return asked.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/solve",
            "raw_path": b"/v1/solve",
            "query_string": b"",
            "headers": [],
            "scheme": "http",
            "server": ("test", 80),
            "http_version": "1.1",
        }
        call = asyncio.create_task(client.app(scope, receive, send))
        while len(solver.open) < 3:
            await asyncio.sleep(0.005)
        left.set()
        await asyncio.wait_for(call, 10)

    for stream in (False, True):
        asyncio.run(leave(stream))
        assert not solver.open
        assert solver._host.stats() | {"steps": 0} == {"running": 0, "waiting": 0, "steps": 0}
    assert metric(client, "puzzles_total", status="abort") == 6


def test_failures_of_the_process_are_those_of_the_language_models(make):
    solver = TinySolver()
    solver.time_out = True
    client = make(solver)
    assert refusal(client, {"grid": EASY.text}, 504)["code"] == "timeout"
    solver.time_out, solver.state = False, "dead"
    assert refusal(client, {"grid": EASY.text}, 503)["code"] == "dead"
    assert client.get("/health").status_code == 503
    client.app.state.service.draining = True
    assert refusal(client, {"grid": EASY.text}, 503)["code"] == "draining"
    client.app.state.service.draining, client.app.state.service.solver = False, None
    assert refusal(client, {"grid": EASY.text}, 503)["code"] == "loading"


def test_a_key_is_needed_where_one_is_set(make):
    client = make(api_keys=("k",))
    assert client.post("/v1/solve", {"grid": EASY.text}).status_code == 401
    solve(client, {"grid": EASY.text}, headers={"authorization": "Bearer k"})


def test_without_solvers_the_route_says_how_to_serve_one(client):
    error = refusal(client, {"grid": EASY.text}, 404)
    assert error["code"] == "not_served"
    assert error["message"] == (
        "this server has no solver: detinfer serve --solver NAME serves one"
    )


def test_without_a_language_model_its_routes_say_so_and_the_server_is_ready(make):
    client = make()
    assert client.get("/health").status_code == 200
    for path, body in (
        ("/generate", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/check", {}),
    ):
        response = client.post(path, body)
        assert response.status_code == 404, path
        assert response.json()["error"]["message"] == (
            "this server has no language model: detinfer serve MODEL serves one"
        )


def test_both_kinds_are_served_at_once_and_told_of(make):
    client = make(TinySolver("one", "two"), FakeEngine())
    assert client.generate({"prompt": "a", "max_tokens": 2}).status_code == 200
    solve(client, {"model": "one", "grid": EASY.text})
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["fake-model", "one", "two"]
    assert cards[1] == client.get("/v1/models/one").json()
    about = {"task": "sudoku4", "cells": 16, "parameters": 1234, "accuracy": 0.996}
    about |= {"halting_step": 1.25, "system_fingerprint": "detinfer-test-one"}
    assert about.items() <= cards[1].items()
    info = client.get("/server_info").json()
    assert info["model"] == "fake-model"
    assert info["solvers"]["models"]["two"] == {
        "task": "sudoku4",
        "system_fingerprint": "detinfer-test-two",
        "fingerprint": {"kernels": "scripted"},
    }
    assert info["solvers"]["stats"]["steps"] == 2
    client.app.state.service.solver.state = "dead"
    assert client.get("/health").json()["error"]["code"] == "dead"
    assert client.generate({"prompt": "a", "max_tokens": 2}).status_code == 200


def metric(client, name, **labels):
    [value] = [
        one.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for one in family.samples
        if one.name == f"detinfer:{name}" and labels == one.labels
    ]
    return value


def test_puzzles_are_counted_by_what_came_of_them(make):
    client = make()
    solve(client, {"grid": [EASY.text, HARD.text, EASY.text], "max_steps": 3})
    solve(client, {"grid": EASY.text, "halt": "fixed", "max_steps": 5})
    refusal(client, {"grid": BROKEN.text}, 500)
    refusal(client, {"grid": "1"})
    counts = {
        status: metric(client, "puzzles_total", status=status)
        for status in ("solved", "unsolved", "unsolvable", "abort", "error")
    }
    assert counts == {"solved": 3, "unsolved": 1, "unsolvable": 0, "abort": 0, "error": 1}
    halts = {
        why: metric(client, "puzzles_halted_total", halted_by=why)
        for why in ("fixed", "q", "verified", "stable", "max_steps")
    }
    assert halts == {"fixed": 1, "q": 0, "verified": 2, "stable": 0, "max_steps": 1}
    assert metric(client, "solve_steps_sum") == 2 + 3 + 2 + 5
    assert metric(client, "solve_steps_count") == 4
    assert metric(client, "solve_steps_bucket", le="2.0") == 2
    assert metric(client, "num_puzzles_running") == metric(client, "num_puzzles_waiting") == 0


def test_while_loading_all_routes_wait_for_what_they_serve():
    app = create_app(None, ServerConfig(), serves=SOLVERS)
    assert app.state.service.state == "loading"
    app.state.service.solver = TinySolver()
    assert app.state.service.state == "ready"
