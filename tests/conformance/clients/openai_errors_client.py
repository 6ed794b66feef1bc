"""The ``openai`` SDK's exceptions: openai_errors_client.py URL KEY.

The server wants KEY, runs one request at a time and lets none wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import openai
from openai import OpenAI

MESSAGES = [{"role": "user", "content": "hello"}]


def refusal(call: Callable[..., object], **ask: object) -> openai.APIStatusError:
    """The exception that a request must raise."""
    try:
        call(**ask)
    except openai.APIStatusError as error:
        return error
    raise AssertionError(f"{ask}: not refused")


def expect(
    kind: type[openai.APIStatusError],
    client: OpenAI,
    param: str | None,
    code: str | None,
    **ask: object,
) -> openai.APIStatusError:
    """The exception, of exactly this class, that a completion or a chat must raise."""
    create = client.chat.completions.create if "messages" in ask else client.completions.create
    error = refusal(create, **ask)
    assert type(error) is kind, error
    assert (error.param, error.code) == (param, code), error
    assert error.type
    assert error.body["message"]
    assert error.request_id
    return error


def check_bad_requests(client: OpenAI, model: str) -> None:
    bad = [
        ("temperature", None, {"temperature": -1}),
        ("max_tokens", None, {"max_tokens": "many"}),
        ("max_tokens", "context_length_exceeded", {"max_tokens": 1_000_000}),
        ("n", None, {"n": 0}),
        ("stop", None, {"stop": [1]}),
        ("logit_bias", None, {"logit_bias": {"999999999": 1}}),
        ("stream_options", None, {"stream_options": {"include_usage": True}}),
        ("nonsense", "unknown_field", {"extra_body": {"nonsense": 1}}),
    ]
    for param, code, ask in bad:
        for prompt in ({"prompt": "hello"}, {"messages": MESSAGES}):
            expect(openai.BadRequestError, client, param, code, model=model, **prompt, **ask)
    expect(openai.BadRequestError, client, "suffix", None, model=model, prompt="a", suffix="b")
    tool = {"type": "function", "function": {"name": "f"}}
    for param, ask in [
        ("tools.0.function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tools.1.function.name", {"tools": [tool, tool]}),
        ("tool_choice", {"tools": [tool], "tool_choice": "any"}),
    ]:
        expect(openai.BadRequestError, client, param, None, model=model, messages=MESSAGES, **ask)


def check_unknown_models(client: OpenAI) -> None:
    for prompt in ({"prompt": "hello"}, {"messages": MESSAGES}):
        expect(openai.NotFoundError, client, "model", "model_not_found", model="gpt-x", **prompt)
    error = refusal(client.models.retrieve, model="gpt-x")
    assert type(error) is openai.NotFoundError
    assert error.code == "model_not_found"


def check_unbuilt_route(client: OpenAI) -> None:
    error = refusal(client.embeddings.create, model="any", input="hello")
    assert type(error) is openai.NotFoundError
    assert error.type


def check_keys(url: str, key: str, model: str) -> None:
    ask = {"model": model, "prompt": "hello"}
    stranger = OpenAI(base_url=url, api_key=f"{key}x", max_retries=0)
    expect(openai.AuthenticationError, stranger, None, "invalid_api_key", **ask)
    ask["extra_headers"] = {"Authorization": openai.omit}
    expect(openai.AuthenticationError, stranger, None, "missing_api_key", **ask)


def check_full_queue(client: OpenAI, model: str) -> None:
    """While one answer runs there is no room; once its reader has gone away there is again."""
    long = client.completions.create(
        model=model, prompt="hello", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(long))
    for prompt in ({"prompt": "hello"}, {"messages": MESSAGES}):
        for stream in (False, True):
            error = expect(
                openai.RateLimitError, client, None, "queue_full",
                model=model, stream=stream, **prompt,
            )  # fmt: skip
            assert int(error.response.headers["retry-after"]) >= 1
    long.close()
    # The SDK's own retries, after what Retry-After says, find the freed place.
    patient = client.with_options(max_retries=5)
    assert patient.completions.create(model=model, prompt="hello", max_tokens=2).choices


def main() -> None:
    url, key = f"{sys.argv[1]}/v1", sys.argv[2]
    client = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    check_bad_requests(client, model)
    check_unknown_models(client)
    check_unbuilt_route(client)
    check_keys(url, key, model)
    check_full_queue(client, model)
    print("openai SDK: 400, 401, 404 and 429 are its own exceptions, with param and code")


if __name__ == "__main__":
    main()
