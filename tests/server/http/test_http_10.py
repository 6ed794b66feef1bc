"""HTTP/1.0: no chunks, no 100 Continue, one answer a connection (RFC 9112, section 6 and 9)."""

from __future__ import annotations

import json
import socket

import pytest
from fake_engine import FakeEngine
from loopback import served_on_a_thread


@pytest.fixture(scope="module")
def port():
    with served_on_a_thread(FakeEngine()) as (port, _):
        yield port


def _exchange(port: int, version: str, path: str, body: dict | None, *headers: str) -> bytes:
    """All that comes until the server closes the connection."""
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    lines = [f"{method} {path} HTTP/{version}", "Host: t", *headers]
    lines += [f"Content-Length: {len(content)}"] if content else []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize("keep", [(), ("Connection: keep-alive",)])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "a", "max_tokens": 5}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/generate_stream", {"inputs": "a"}),
    ],
)
def test_a_stream_ends_with_its_connection_and_has_the_events_of_a_chunked_one(
    port, path, body, keep
):
    if path != "/generate_stream":
        body = {**body, "stream": True, "seed": 1}
    head, _, old = _exchange(port, "1.0", path, body, *keep).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in head.lower()
    assert b"connection: close" in head.lower()
    assert old.startswith(b"data:")
    assert old.endswith(b"\n\n")
    head, _, new = _exchange(port, "1.1", path, body, "Connection: close").partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()  # the control
    assert old.count(b"data:") == new.count(b"data:") > 1


def test_answers_with_a_length_errors_and_an_expectation_are_plain_too(port):
    whole = _exchange(port, "1.0", "/generate", {"prompt": "a"}, "Expect: 100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["finish_reason"] == "length"
    head, _, body = _exchange(port, "1.0", "/generate", {"prompt": 5}).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["param"] == "prompt"
    assert _exchange(port, "1.0", "/openapi.json", None).partition(b"\r\n\r\n")[2].endswith(b"}")
