from __future__ import annotations

import argparse
import os
import stat

import pytest
from fake_engine import FakeEngine
from starlette.requests import Request
from starlette.responses import Response

from detinfer.cli import flags
from detinfer.errors import ConfigError


def _keys(*arguments: str) -> tuple[str, ...]:
    parser = argparse.ArgumentParser()
    flags.add_server_flags(parser)
    return flags.server_config(parser.parse_args(arguments)).api_keys


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("DETINFER_API_KEY", raising=False)


def test_keys_come_from_flags_file_and_environment_each_once(tmp_path, monkeypatch, capsys):
    file = tmp_path / "keys"
    file.write_text("# ours\nthird\n\n  fourth  \nfirst\n")
    file.chmod(0o640)
    monkeypatch.setenv("DETINFER_API_KEY", "fifth,with comma")
    got = _keys("--api-key", "first", "--api-key", "second", "--api-key-file", str(file))
    assert got == ("first", "second", "third", "fourth", "fifth,with comma")
    assert capsys.readouterr().err == ""


def test_an_empty_variable_is_no_key(monkeypatch):
    monkeypatch.setenv("DETINFER_API_KEY", "")
    assert _keys() == ()


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_file_others_can_read_is_named_in_a_warning(tmp_path, capsys):
    file = tmp_path / "keys"
    file.write_text("secret\n")
    file.chmod(file.stat().st_mode | stat.S_IROTH)
    assert _keys("--api-key-file", str(file)) == ("secret",)
    warning = capsys.readouterr().err
    assert str(file) in warning
    assert "secret" not in warning
    assert warning.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got no key in"),
        (b"# only a comment\n\n", "got no key in"),
        ("clé\n".encode(), "expected printable ASCII"),
        (b"\xff\xfe\n", "expected printable ASCII"),
        (b"a\0b\n", "expected printable ASCII"),
        (b"k\n" * (1 << 20), "got more than"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=f"--api-key-file: {message}"):
        _keys("--api-key-file", str(file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere: No such file"):
        _keys("--api-key-file", str(tmp_path / "nowhere"))


def test_a_bad_key_in_the_environment_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("DETINFER_API_KEY", " k")
    with pytest.raises(ConfigError, match="DETINFER_API_KEY: expected printable"):
        _keys()


def _salts(client, keys: list[str]) -> list[str]:
    """What the routes get to see as the salt, for each key in turn."""
    seen: list[str] = []

    async def salt(request: Request) -> Response:
        seen.append(getattr(request.state, "cache_salt", ""))
        return Response()

    client.app.add_route("/salt", salt)
    for key in keys:
        assert client.get("/salt", headers={"authorization": f"Bearer {key}"}).status_code == 200
    return seen


def test_each_key_has_its_own_cache_salt_without_the_key_in_it(make_client):
    first, second, again = _salts(make_client(api_keys=("one", "two")), ["one", "two", "one"])
    assert first == again != second
    assert "" not in (first, second)
    assert "one" not in first


def test_salts_are_equal_when_shared_or_without_keys(make_client):
    shared = make_client(api_keys=("one", "two"), share_prefix_cache=True)
    assert _salts(shared, ["one", "two"]) == ["", ""]
    assert _salts(make_client(), ["one"]) == [""]


@pytest.mark.parametrize(
    "path",
    [
        "/health/",
        "//health",
        "/./health",
        "/health/../version",
        "/v1/../health",
        "/health;/version",
        "/health%2f..%2fversion",
        "/HEALTH",
        "/health%00",
        "/health%0a",
        "/ready%20",
        "/healthx",
    ],
)
def test_no_spelling_of_a_path_gets_past_the_keys(make_client, path):
    response = make_client(api_keys=("k",)).get(f"http://test{path}")
    # Normalised by the client, "/v1/../health" is /health itself.
    expected = 200 if response.request.url.raw_path == b"/health" else 401
    assert response.status_code == expected, response.request.url.raw_path


def test_public_routes_are_open_by_their_exact_path_only(make_client):
    client = make_client(api_keys=("k",))
    for path in ("/health", "/ready", "/%68ealth", "/", "/docs", "/page/app.js"):
        assert client.get(path).status_code == 200
    for path in ("/metrics", "/docs/", "/page/", "/openapi.json", "/nowhere", "/generate"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize("header", [b"Bearer", b"Bearer ", b"bearer \t ", b"", b"k", b"Token k"])
def test_no_bearer_key_is_a_missing_one(make_client, header):
    response = make_client(api_keys=("k",)).get("/version", headers={b"authorization": header})
    assert (response.status_code, response.json()["error"]["code"]) == (401, "missing_api_key")


def test_every_route_there_is_needs_the_key_but_health_and_ready(make_client):
    paths = make_client().get("/openapi.json").json()["paths"]
    client = make_client(api_keys=("k",))
    for path, operations in paths.items():
        for method in operations:
            response = client.request(method.upper(), path.replace("{model_id}", "x"))
            assert (response.status_code == 401) == (path not in {"/health", "/ready"}), path
            assert ("401" in operations[method]["responses"]) == (response.status_code == 401), path


def test_every_route_answers_with_the_error_object_whatever_is_wrong(make_client):
    class Broken(FakeEngine):
        def generate(self, *args, **options):
            raise KeyError("unforeseen")

    client = make_client(Broken())
    paths = client.get("/openapi.json").json()["paths"]
    seen: set[int] = set()
    of_tgi: set[str] = set()
    for path, operations in paths.items():
        for method in ("GET", "POST", "DELETE"):
            for body in (
                b"{",
                b'{"prompt": "a", "inputs": "a"}',
                b'{"prompt": "a"}',
                b'{"inputs": "a"}',
            ):
                response = client.request(method, path.replace("{model_id}", "x"), content=body)
                seen.add(response.status_code)
                if response.status_code >= 400:
                    said = response.json()
                    if "error_type" in said:
                        of_tgi.add(path)
                        assert set(said) == {"error", "error_type", "param", "code"}, path
                    else:
                        assert set(said["error"]) == {"message", "type", "param", "code"}, path
                    documented = operations.get(method.lower(), {}).get("responses", {})
                    assert not documented or str(response.status_code) in documented, path
    assert {200, 400, 404, 405, 500} <= seen
    assert of_tgi == {"/", "/generate", "/generate_stream"}
