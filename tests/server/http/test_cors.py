from __future__ import annotations

import argparse

import pytest
from fake_engine import FakeEngine

from detinfer.cli import flags

PAGE = "https://page.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-request-id",
}


def test_without_origins_nothing_is_allowed(client):
    response = client.get("/health", headers={"origin": PAGE})
    assert not any(name.startswith("access-control") for name in response.headers)
    assert client.request("OPTIONS", "/generate", headers=PREFLIGHT).status_code == 405


@pytest.mark.parametrize("origin", [PAGE, "*"])
def test_a_preflight_needs_no_key_and_allows_what_clients_send(make_client, origin):
    client = make_client(api_keys=("k",), cors_origins=(origin,))
    response = client.request("OPTIONS", "/generate", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "authorization" in response.headers["access-control-allow-headers"]
    assert response.headers["x-request-id"]


def test_a_preflight_from_elsewhere_is_refused_with_the_error_object(make_client):
    client = make_client(cors_origins=("https://other.example",))
    response = client.request("OPTIONS", "/generate", headers=PREFLIGHT)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "cors"
    assert "access-control-allow-origin" not in response.headers


def test_answers_and_errors_of_every_kind_can_be_read_by_the_page(make_client):
    class Broken(FakeEngine):
        def generate(self, *args, **options):
            raise KeyError("unforeseen")

    client = make_client(Broken(), api_keys=("k",), cors_origins=(PAGE,))
    key, page = {"authorization": "Bearer k"}, {"origin": PAGE}
    responses = [
        client.get("/health", headers=page),
        client.get("/version", headers=page),
        client.get("/nowhere", headers=key | page),
        client.generate({"prompt": 5}, headers=key | page),
        client.generate(b" " * (5 << 20), headers=key | page),
        client.generate({"prompt": "a"}, headers=key | page),
    ]
    assert [response.status_code for response in responses] == [200, 401, 404, 400, 413, 500]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == PAGE
        exposed = response.headers["access-control-expose-headers"]
        for name in ("x-request-id", "x-detinfer-digest", "x-detinfer-deterministic"):
            assert name in exposed
        assert "origin" in response.headers["vary"].lower()
    elsewhere = client.get("/health", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in elsewhere.headers


@pytest.mark.parametrize(
    ("given", "good"),
    [
        ("*", True),
        ("https://page.example", True),
        ("http://localhost:3000", True),
        ("chrome-extension://abcdef", True),
        ("page.example", False),
        ("https://page.example/", False),
        ("https://a.example,https://b.example", False),
        ("HTTPS://page.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_only_what_a_browser_could_send_is_taken_for_an_origin(given, good, capsys):
    parser = argparse.ArgumentParser()
    flags.add_server_flags(parser)
    arguments = ["--cors-origin", given]
    if good:
        assert flags.server_config(parser.parse_args(arguments)).cors_origins == (given,)
    else:
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert "expected * or an origin" in capsys.readouterr().err
