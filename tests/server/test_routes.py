from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest
from fake_engine import INFO, FakeEngine
from loopback import serving

from detinfer import __version__
from detinfer.server.limits import MAX_BODY_BYTES

GUARDED = ["/version", "/server_info", "/v1/models", "/v1/models/fake-model", "/openapi.json"]


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_is_503_with_the_state_until_ready_and_while_draining(make_client, path):
    client = make_client(loading=True)
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
    client.app.state.service.engine = FakeEngine()
    assert client.get(path).status_code == 200
    client.app.state.service.draining = True
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
    assert client.generate({"prompt": "a"}).status_code == 503


def test_version_and_server_info(client):
    assert client.get("/version").json() == {"version": __version__}
    info = client.get("/server_info").json()
    assert info["system_fingerprint"] == INFO.system_fingerprint
    assert info["fingerprint"] == INFO.fingerprint
    assert info["engine"]["max_model_len"] == 256
    assert info["engine"]["kv_cache_dtype"] == "float32"
    assert info["stats"] == {"running": 0, "waiting": 0}


def test_models_are_listed_under_the_served_name(make_client):
    for name, settings in [("fake-model", {}), ("org/mine", {"served_model_name": "org/mine"})]:
        client = make_client(**settings)
        listing = client.get("/v1/models").json()
        assert listing["object"] == "list"
        [card] = listing["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == (name, "model", 256)
        assert client.get(f"/v1/models/{name}").json() == card
        response = client.get("/v1/models/gpt-9")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "message"),
    [
        ("GET", "/nowhere", 404, "route_not_found", "no such route: GET /nowhere"),
        ("GET", "/health/", 404, "route_not_found", "no such route: GET /health/"),
        ("GET", "/generate", 405, "method_not_allowed", "got GET for /generate, expected POST"),
        ("POST", "/health", 405, "method_not_allowed", "got POST for /health, expected GET"),
    ],
)
def test_routing_errors_have_the_error_object(client, method, path, status, code, message):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert message in response.json()["error"]["message"]
    assert ("allow" in response.headers) == (status == 405)


def test_request_id_comes_back_unless_malformed(client):
    for path in ("/health", "/nowhere"):
        response = client.get(path, headers={"x-request-id": "trace-1:a/b"})
        assert response.headers["x-request-id"] == "trace-1:a/b"
        for bad in ("a b", "x" * 129, "é"):
            given = client.get(path, headers={"x-request-id": bad.encode("latin-1")})
            assert len(given.headers["x-request-id"]) == 32
    assert (
        client.get("/health").headers["x-request-id"]
        != client.get("/health").headers["x-request-id"]
    )


@pytest.mark.parametrize("path", GUARDED)
def test_a_key_guards_everything_but_the_public_routes(make_client, path):
    client = make_client(api_keys=("first", "sécond"))
    for header in ({}, {"authorization": "Bearer "}, {"authorization": "Basic first"}):
        response = client.get(path, headers=header)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "missing_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
    for wrong in (b"Bearer firs", b"Bearer first2", b"Bearer \xff\xfe"):
        response = client.get(path, headers={b"authorization": wrong})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    for right in (b"Bearer first", b"bearer  first", "Bearer sécond".encode()):
        assert client.get(path, headers={b"authorization": right}).status_code == 200


def test_generate_needs_the_key_and_health_does_not(make_client):
    client = make_client(api_keys=("first",))
    assert client.generate({"prompt": "a"}).status_code == 401
    assert client.get("/nowhere").status_code == 401
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200


def test_without_keys_an_empty_or_any_bearer_is_fine(client):
    for header in ("Bearer ", "Bearer anything"):
        assert client.get("/version", headers={"authorization": header}).status_code == 200


def test_body_over_the_limit_is_a_413_with_and_without_a_length():
    async def chunks(total: int):
        for _ in range(total // 65536):
            yield b" " * 65536

    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine) as (port, _), httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/generate"
            for content in (b" " * (MAX_BODY_BYTES + 1), chunks(MAX_BODY_BYTES + 65536)):
                response = await client.post(url, content=content)
                assert response.status_code == 413
                assert "expected at most 4194304 bytes" in response.json()["error"]["message"]
            body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
            padded = body + b" " * (MAX_BODY_BYTES - len(body))
            assert (await client.post(url, content=padded)).status_code == 200

    asyncio.run(scenario())


def test_openapi_describes_every_status_and_resolves(client):
    schema = client.get("/openapi.json").json()
    text = json.dumps(schema)
    names = set(schema["components"]["schemas"])
    references = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references <= names
    assert "HTTPValidationError" not in names
    generating = {"200", "400", "401", "408", "413", "429", "500", "503", "504"}
    for path, statuses in [
        ("/", generating),
        ("/generate", generating),
        ("/generate_stream", generating),
        ("/verify", generating),
        ("/v1/completions", generating | {"404"}),
        ("/v1/chat/completions", generating | {"404"}),
        ("/tokenize", generating - {"429", "504"} | {"404"}),
        ("/detokenize", generating - {"429", "504"} | {"404"}),
    ]:
        post = schema["paths"][path]["post"]
        assert set(post["responses"]) == statuses, path
        [media] = post["requestBody"]["content"].values()
        for reference in media["schema"].get("anyOf", [media["schema"]]):
            assert reference["$ref"].split("/")[-1] in names, path
    body = schema["components"]["schemas"]["GenerateRequest"]
    assert body["additionalProperties"] is False
    assert body["properties"]["max_tokens"]["anyOf"][0]["minimum"] == 1
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path


def test_the_http_process_loads_no_kernels():
    script = (
        "import sys, detinfer.server.run;"
        "print(sorted({'torch', 'numba', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
