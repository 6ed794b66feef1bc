"""Text Generation Inference's body, and the call it amounts to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from detinfer.errors import RequestError
from detinfer.params import MAX_LOGPROBS, MAX_N, MAX_TOKENS_LIMIT
from detinfer.server.api.bodies.fields import (
    Integer,
    Logprobs,
    Seed,
    Text,
    Texts,
    Tokens,
    WithReceipt,
    documented,
)
from detinfer.server.api.bodies.neutral import Neutral, Off
from detinfer.server.api.bodies.receipt import Receipt
from detinfer.server.api.bodies.sampling import Given, Sampling, given_sampling
from detinfer.server.api.bodies.strict import StrictBody, shown
from detinfer.server.api.bodies.structured import TGIGrammar
from detinfer.server.call import Call, Truncation, check_prompts, check_range, sampling_params
from detinfer.server.errors import Failure

_KINDS = {
    400: "validation",
    408: "validation",
    413: "validation",
    429: "overloaded",
    500: "generation",
    504: "generation",
}


class TGIParameters(Sampling):
    """TGI's ``parameters``, and ours; null means left out."""

    max_new_tokens: Tokens | None = Field(None, description="128 unless given")
    seed: Seed | None = None
    deterministic: bool | None = None
    receipt: WithReceipt = None
    do_sample: bool | None = Field(
        None, description="true, or a temperature, top_k or top_p that is not neutral: sampled"
    )
    best_of: Annotated[Integer, documented(1, MAX_N)] | None = Field(
        None, description="of so many answers the one whose tokens are the likeliest on average"
    )
    details: bool | None = Field(None, description="a stream has them either way")
    decoder_input_details: bool | None = Field(None, description="the prompt's tokens too")
    top_n_tokens: Logprobs | None = None
    return_full_text: bool | None = Field(None, description="begin the text with the prompt")
    truncate: Annotated[Integer, documented(1, MAX_TOKENS_LIMIT)] | None = Field(
        None, description="keep no more than the last so many tokens of the prompt"
    )
    typical_p: Annotated[Any, Neutral(1.0)] = None
    watermark: Off = None
    grammar: TGIGrammar = Field(None, description="of type json, json_schema or regex")
    adapter_id: Annotated[Any, Neutral("")] = None


class TGIRequest(StrictBody):
    """The body of ``POST /``, ``POST /generate_stream`` and, by its fields, ``POST /generate``."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "inputs": "a string or a list of strings",
    }

    inputs: Text | Texts
    parameters: TGIParameters | None = None
    stream: bool | None = None


class TGIToken(BaseModel):
    """A token of the answer; those of a prompt have no ``special``."""

    id: int
    text: str
    logprob: float | None
    special: bool = False


class TGIDetails(BaseModel):
    """How an answer came about."""

    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[TGIToken]
    tokens: list[TGIToken]


class TGIResponse(BaseModel):
    """One answer, in TGI's words and with ours beside them."""

    generated_text: str
    deterministic: bool
    seed: int | None
    digest: str
    system_fingerprint: str
    details: TGIDetails | None = None
    receipt: Receipt | None = None


class TGIError(BaseModel):
    """A failure, in TGI's words and with ours beside them."""

    error: str
    error_type: str
    param: str | None
    code: str | None


def tgi_failure(failure: Failure) -> dict[str, Any]:
    """Return the failure as ``TGIError``."""
    return {
        "error": failure.message,
        "error_type": _KINDS.get(failure.status, failure.type),
        "param": failure.param,
        "code": failure.code,
    }


@dataclass(frozen=True, kw_only=True)
class TGICall(Call):
    """A validated body.

    Attributes:
        best_of: of so many jobs, one after another, one is the answer.
        details: whether whole answers have them.
        top_tokens: how many of the likeliest tokens are shown at each place; 0 is none.
        full_text: whether texts begin with the prompt.
    """

    best_of: int
    details: bool
    top_tokens: int
    full_text: bool


def tgi_call(
    body: TGIRequest, stream: bool, default_deterministic: bool, as_list: bool = False
) -> TGICall:
    """Resolve defaults; ``as_list`` makes a list of a single answer too.

    Raises:
        RequestError: a value out of range, or fields that do not go together.
    """
    given = body.parameters or TGIParameters.model_construct()
    prompts: Any = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    values, sources = given_sampling(given, "parameters.")
    values.setdefault("deterministic", default_deterministic)
    values["temperature"] = _temperature(given, values)
    best_of = 1 if given.best_of is None else given.best_of
    top_tokens = given.top_n_tokens or 0
    details = bool(given.details or given.decoder_input_details)
    if best_of != 1:
        _check_best_of(best_of, values, stream)
        values["n"], sources["n"] = best_of, "parameters.best_of"
    if stream or details or best_of > 1:
        values["logprobs"], sources["logprobs"] = top_tokens, "parameters.top_n_tokens"
    if given.decoder_input_details:
        values["prompt_logprobs"] = 0
    sources["receipt"] = "parameters.receipt"
    params = sampling_params(values, sources)
    check_range("parameters.truncate", given.truncate, 1, MAX_TOKENS_LIMIT)
    check_range("parameters.top_n_tokens", given.top_n_tokens, 0, MAX_LOGPROBS)
    check_prompts(prompts, "inputs", params.n, sources)
    if stream and params.n > 1:
        raise RequestError(
            f"parameters.n: got {params.n}, expected 1: a stream has one answer", "parameters.n"
        )
    if stream and isinstance(body.inputs, list):
        raise RequestError(
            "inputs: got a list, expected a string: a stream has one answer", "inputs"
        )
    return TGICall(
        prompts=prompts,
        prompt_field="inputs",
        params=params,
        sources=sources,
        stream=stream,
        receipt=bool(given.receipt),
        truncation=None if given.truncate is None else Truncation(given.truncate),
        many=as_list or isinstance(body.inputs, list) or params.n > best_of,
        best_of=best_of,
        details=details,
        top_tokens=top_tokens,
        full_text=bool(given.return_full_text),
    )


def _temperature(given: TGIParameters, values: Given) -> float:
    """TGI's rule: greedy unless ``do_sample``, or a filter or temperature that is not neutral.

    Raises:
        RequestError: ``do_sample`` of true with a temperature of 0.
    """
    neutral = {"temperature": (1,), "top_k": (0, -1), "top_p": (1,), "min_p": (0,)}
    asked = any(name in values and values[name] not in neutral[name] for name in neutral)
    if values.get("temperature") == 0:
        if given.do_sample:
            raise RequestError(
                f"parameters.do_sample: got {shown(given.do_sample)} with temperature = 0, "
                "expected false",
                "parameters.do_sample",
            )
        return 0.0
    return float(values.get("temperature", 1.0)) if given.do_sample or asked else 0.0


def _check_best_of(best_of: int, values: Given, stream: bool) -> None:
    check_range("parameters.best_of", best_of, 1, MAX_N)
    expected = ""
    if stream:
        expected = "1: a stream has one answer"
    elif values.get("n", 1) != 1:
        expected = "1 with parameters.n"
    elif values["temperature"] == 0:
        expected = "1 without sampling"
    if expected:
        raise RequestError(
            f"parameters.best_of: got {best_of}, expected {expected}", "parameters.best_of"
        )
