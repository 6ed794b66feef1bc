"""Small OpenAI-compatible servers of other makes, each misbehaving in a way of its own."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

TOKENS = 6


class Foreign(http.server.BaseHTTPRequestHandler):
    """A sound server of completions and chat: its answers follow prompt and seed alone."""

    protocol_version = "HTTP/1.1"
    routes: ClassVar[tuple[str, ...]] = ("/v1/completions", "/v1/chat/completions")
    logprobs = True
    streams_only = False
    busy: ClassVar[int] = 0
    count: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.reply(404, {"detail": "Not Found"})
            return
        self.reply(200, {"object": "list", "data": [{"id": "other", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind = type(self)
        with self.lock:
            kind.busy += 1
            kind.count += 1
            count = kind.count
        try:
            if self.path not in self.routes:
                self.reply(404, {"detail": "Not Found"})
            elif self.streams_only and not body.get("stream"):
                self.reply(400, {"error": {"message": "stream: expected true"}})
            else:
                self.answer(body, count)
        finally:
            with self.lock:
                kind.busy -= 1

    def answer(self, body: dict[str, Any], count: int) -> None:
        time.sleep(0.002)
        prompt = json.dumps([body.get("prompt"), body.get("messages"), body.get("seed")])
        text = self.words(prompt, body)
        chat = self.path.endswith("chat/completions")
        asked = self.logprobs and body.get("logprobs")
        choices = [self.choice(word, chat, bool(asked), bool(body.get("stream"))) for word in text]
        if body.get("stream"):
            self.stream([*choices, self.end(chat)])
            return
        self.reply(200, {"choices": [self.whole(text, chat, bool(asked))]})

    def words(self, prompt: str, body: dict[str, Any]) -> list[str]:
        drawn = hashlib.sha256(prompt.encode()).hexdigest()
        return [f" {drawn[at : at + 2]}" for at in range(min(TOKENS, body["max_tokens"]))]

    def number(self, word: str) -> float:
        return -int(word, 16) / 7 - 1e-3

    def choice(self, word: str, chat: bool, asked: bool, stream: bool) -> dict[str, Any]:
        told = self.told([word], chat) if asked else None
        return {"delta": {"content": word}, "logprobs": told, "finish_reason": None} if chat else {
            "text": word, "logprobs": told, "finish_reason": None}  # fmt: skip

    def end(self, chat: bool) -> dict[str, Any]:
        return {"delta": {}, "finish_reason": "length"} if chat else {
            "text": "", "finish_reason": "length"}  # fmt: skip

    def whole(self, words: list[str], chat: bool, asked: bool) -> dict[str, Any]:
        text, told = "".join(words), self.told(words, chat) if asked else None
        one: dict[str, Any] = {"finish_reason": "length", "logprobs": told}
        return one | ({"message": {"content": text}} if chat else {"text": text})

    def told(self, words: list[str], chat: bool) -> dict[str, Any]:
        if not chat:
            return {
                "tokens": words,
                "token_logprobs": [self.number(word) for word in words],
                "top_logprobs": [{word: self.number(word), " zz": -40.0} for word in words],
            }
        top = {"token": " zz", "logprob": -40.0}
        return {
            "content": [
                {
                    "token": word,
                    "logprob": self.number(word),
                    "top_logprobs": [{"token": word, "logprob": self.number(word)}, top],
                }
                for word in words
            ]
        }

    def reply(self, status: int, value: Any) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, choices: list[dict[str, Any]]) -> None:
        events = [f"data: {json.dumps({'choices': [one]})}\n\n" for one in choices]
        body = "".join([": hello\n\n", *events, "data: [DONE]\n\n"]).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class NoLogprobs(Foreign):
    logprobs = False


class ChatOnly(Foreign):
    routes = ("/v1/chat/completions",)


class StreamsOnly(Foreign):
    streams_only = True


class RefusesLogprobs(Foreign):
    """422 to a field that it does not know."""

    def answer(self, body: dict[str, Any], count: int) -> None:
        if "logprobs" in body:
            self.reply(422, {"detail": [{"msg": "extra fields not permitted"}]})
        else:
            super().answer(body, count)


class Now500(Foreign):
    """Every fifth answer is a failure."""

    def answer(self, body: dict[str, Any], count: int) -> None:
        if count % 5 == 0:
            self.reply(500, {"error": {"message": "CUDA went away"}})
        else:
            super().answer(body, count)


class Always500(Foreign):
    """From the tenth on."""

    def answer(self, body: dict[str, Any], count: int) -> None:
        if count >= 10:
            self.reply(500, b"<html>no</html>")
        else:
            super().answer(body, count)


class Hangs(Foreign):
    """The seventh answer does not come."""

    def answer(self, body: dict[str, Any], count: int) -> None:
        if count == 7:
            time.sleep(3)
        super().answer(body, count)


class Breaks(Foreign):
    """The seventh answer ends in the middle, the ninth is none."""

    def answer(self, body: dict[str, Any], count: int) -> None:
        if count == 7:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif count == 9:
            self.reply(200, {"choices": []})
        else:
            super().answer(body, count)


class Drifts(Foreign):
    """One bit of a log-probability follows the number of those it serves, and so does a token."""

    def words(self, prompt: str, body: dict[str, Any]) -> list[str]:
        time.sleep(0.1)  # until the others are there
        words = super().words(prompt, body)
        self.crowd = type(self).busy > 1
        if self.crowd and words[3:]:
            words[3] = " ff"
        return words

    def number(self, word: str) -> float:
        return super().number(word) * (1 + 2**-52 * self.crowd)


class WantsKey(Foreign):
    def do_GET(self) -> None:
        if self.headers.get("authorization") == "Bearer sesame":
            super().do_GET()
        else:
            self.reply(401, {"error": {"message": "no"}})


class NoModels(Foreign):
    def do_GET(self) -> None:
        self.reply(404, {"detail": "Not Found"})


@contextlib.contextmanager
def serving_foreign(kind: type[Foreign]) -> Iterator[str]:
    """Serve one of them in a thread; gives its address."""
    kind.busy = kind.count = 0

    class Quiet(http.server.ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients that leave

    with Quiet(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)
