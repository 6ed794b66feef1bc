"""The page is its own files and nothing else: no key, no other origin, nothing inline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from releases import CHECKOUT

from detinfer.recursive.tasks import TASKS
from detinfer.server.api.page import PUBLIC_PATHS

FOLDER = CHECKOUT / "server" / "page"
OURS = sorted(path.name for path in FOLDER.iterdir())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGES = {"/": "index.html", "/docs": "docs.html"}
NAMESPACE = "http://www.w3.org/2000/svg"


def faults(name: str, text: str) -> Iterator[str]:
    """What a strict policy forbids, or would let a model's text in."""
    if re.search(r"https?:|[\"'(]//", text.replace(NAMESPACE, "")):
        yield "another origin"
    if re.search(r"\b(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|srcdoc", text):
        yield "parsed text"
    if name.endswith((".html", ".svg")):
        if re.search(r"<style|\sstyle=|\son\w+=|javascript:", text):
            yield "inline style or handler"
        if re.search(r"<script(?![^>]*\ssrc=)", text):
            yield "inline script"


def test_each_file_comes_with_its_type_and_the_headers_that_keep_it_apart(client):
    paths = {f"/page/{name}": name for name in OURS} | PAGES
    for path, name in paths.items():
        response = client.get(path)
        assert response.status_code == 200, path
        assert response.content == (FOLDER / name).read_bytes()
        assert response.headers["content-type"] == TYPES[Path(name).suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-cache"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; base-uri 'none'; form-action 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
    assert "require-trusted-types-for" in client.get("/").headers["content-security-policy"]


def test_the_descriptions_page_has_its_scripts_and_styles_from_here(client):
    for name, kind in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        response = client.get(f"/page/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert len(response.content) > 100_000


@pytest.mark.parametrize("path", ["/", "/docs", "/page/app.js"])
def test_what_a_client_has_is_not_sent_again_and_head_sends_nothing(client, path):
    whole = client.get(path)
    etag = whole.headers["etag"]
    again = client.get(path, headers={"if-none-match": f'"other", W/{etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"if-none-match": '"other"'}).content == whole.content
    head = client.request("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["etag"] == etag


def test_files_are_read_without_a_key_and_all_else_is_not(make_client):
    client = make_client(api_keys=("first",))
    for path in PUBLIC_PATHS:
        assert client.get(path).status_code == 200, path
        assert client.request("HEAD", path).status_code == 200, path
    for path in ("/openapi.json", "/server_info", "/metrics", "/page/nothing.js"):
        assert client.get(path).status_code == 401, path
    for method in ("POST", "PUT", "OPTIONS"):
        assert client.request(method, "/", json={"inputs": "a"}).status_code == 401, method
    given = {"headers": {"authorization": "Bearer first"}}
    assert client.post("/", {"inputs": "a"}, **given).status_code == 200


def test_the_page_is_there_while_the_model_loads(make_client):
    assert make_client(loading=True).get("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/nothing.js",
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/..%5capp.py",
        "/page/%2fetc%2fpasswd",
        "/page/app.js/",
        "/page/fastapi_offline/core.py",
        "/index.html",
    ],
)
def test_no_path_leads_elsewhere(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "route_not_found"


def test_none_of_it_is_in_the_description(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert not {"/docs", "/page/{name}"} & {*paths}
    assert "get" not in paths["/"]


@pytest.mark.parametrize("name", OURS)
def test_no_file_has_inline_code_or_an_address_elsewhere(name):
    assert list(faults(name, (FOLDER / name).read_text())) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<link href="https://cdn.example/a.css">', "another origin"),
        ('<script src="//cdn.example/a.js"></script>', "another origin"),
        ("answer.innerHTML = text", "parsed text"),
        ('<p style="color: red">', "inline style or handler"),
        ('<button onclick="send()">', "inline style or handler"),
        ("<script>send()</script>", "inline script"),
    ],
)
def test_the_search_finds_what_it_is_for(text, fault):
    assert fault in list(faults("a.html", text))


def test_all_that_a_file_names_is_served(client):
    named = set()
    for name in OURS:
        text = (FOLDER / name).read_text()
        named |= {*re.findall(r'(?:href|src)="page/([^"]+)"', text)}
        named |= {*re.findall(r'from "\./([^"]+)"', text)}
    assert {f"/page/{name}" for name in named} <= PUBLIC_PATHS
    assert {*OURS} - named == {*PAGES.values()}


def test_every_id_that_a_script_looks_for_is_in_the_page():
    page = (FOLDER / "index.html").read_text()
    for script in FOLDER.glob("*.js"):
        for name in re.findall(r'\b(?:find|number)\("([^"]+)"\)', script.read_text()):
            assert f'id="{name}"' in page, (script.name, name)


def test_the_examples_are_puzzles_with_one_solution():
    script = (FOLDER / "boards.js").read_text()
    boards = re.findall(r'"([\d.#SG]{16,})"', script)
    tasks = {task.cells: task for task in TASKS.values()}
    assert {len(board) for board in boards} == {*tasks}
    for text in boards:
        task = tasks[len(text)]
        board = task.parse(text)
        assert task.clash(board) is None
        assert task.solutions(board) == 1, text
