"""What schemathesis must know of this API; schemathesis.toml names this file.

It keeps answers short (valid bodies stay valid, others invalid), and it knows the rules that JSON
Schema cannot state.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis

LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens")
# The most that is asked for, of what the schema allows.
MOST = {**dict.fromkeys((*LENGTHS, "min_tokens", "min_new_tokens"), 2), "n": 2, "runs": 2}
ALLOWED = {**dict.fromkeys(MOST, 1 << 20), "n": 128, "runs": 1000}
# Where the dialects of /generate have their lengths, by the names of their prompts.
FORMS = {"inputs": "parameters", "text": "sampling_params", "input_ids": "sampling_params"}
# Have no length of their own.
UNLIMITED = ("/tokenize", "/detokenize", "/verify", "/v1/embeddings", "/score", "/v1/score")
BOARD = "3.......5...2...4....5...61...5.31.."


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Cut numbers that the schema allows, and give a length where there is none."""
    if not isinstance(case.body, dict):
        return
    body = case.body = whole_numbers(case.body)
    for message in body.get("messages") or ():
        # An assistant's alone may have none.
        if isinstance(message, dict) and message.get("role") != "assistant":
            message["content"] = "a" if message.get("content") is None else message["content"]
    if case.path == "/verify":
        fit_checksums(body.get("answer"))
    if case.path in UNLIMITED:
        return
    if case.path == "/v1/solve":
        shorten_solving(body)
        return
    nested = [body.get("sampling_params"), body.get("parameters")]
    forms = [body, *(form for form in nested if isinstance(form, dict))]
    for form in forms:
        for name, most in MOST.items():
            if type(value := form.get(name)) is int and most < value <= ALLOWED[name]:
                form[name] = most
    if case.path == "/check":
        # Without a prompt it has its own, of thousands of tokens.
        body |= {n: v for n, v in {"runs": 2, "prompt": "a"}.items() if body.get(n) is None}
    if any(form.get(name) is not None for form in forms for name in LENGTHS):
        return
    for prompt, form in FORMS.items():
        if body.get(prompt) is not None:
            if isinstance(inner := body.get(form) or {}, dict):
                body[form] = {**inner, "max_new_tokens": 2}
            return
    body["max_tokens"] = 2


def fit_checksums(answer: Any) -> None:
    """Give as many checksums as tokens, where there are both."""
    if isinstance(answer, dict):
        names = [name for name in ("token_ids", "checksums") if isinstance(answer.get(name), list)]
        least = min((len(answer[name]) for name in names), default=0)
        if len(names) == 2 and least:
            answer |= {name: answer[name][:least] for name in names}


def shorten_solving(body: dict[str, Any]) -> None:
    """Give a real board in place of any text, and few steps."""
    grid = body.get("grid")
    if isinstance(grid, str) and grid:
        body["grid"] = BOARD
    elif isinstance(grid, list) and 0 < len(grid) <= 1024:
        body["grid"] = [BOARD if isinstance(one, str) and one else one for one in grid][:4]
    for name, most in (("max_steps", 1024), ("rollouts", 64)):
        if type(value := body.get(name)) is int and 2 < value <= most:
            body[name] = 2


def whole_numbers(value: Any) -> Any:
    """The same JSON with 1.0 as 1: one number to JSON Schema, but no integer to this API."""
    if isinstance(value, dict):
        return {name: whole_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole_numbers(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value


# A body may be valid by the schema and still break one of these; then a 400 must say so.
RULES = [
    r"prompt: missing, expected prompt or input_ids",
    r"prompt: got (neither|both) of prompt and messages",
    r"got token id \d+, expected 0\.\.",  # the model's vocabulary
    r"logit_bias: got \d+, expected an integer in 0\.\.",  # its keys are strings
    r"got it beside .*, expected one of",  # a field and its alias
    r"(text_1|text_2|queries|documents|data_1|data_2): missing, expected a string or a list of ",
    r"got \d+ for \d+ of \w+, expected as many",
    r"stream_options: got \w+ without stream",
    r"prompt_logprobs: got it with stream",
    r"truncate_prompt_tokens: got 0, ",
    r"messages\.\d+\.content: got null, ",  # of any but an assistant
    r"tool_call_id: got .*, expected the id of a call before it",
    r"tool_calls: got them of a \w+, expected none",
    r"arguments: got .*, expected a JSON object, as text",
    r"tools\.\d+\.function\.name: got .* twice",
    r"parameters: got .*, expected type \"object\"",
    r"tool_choice: got .* (without tools|expected the name of one of the tools)",
    r"continue_final_message: got true with add_generation_prompt",
    r"top_logprobs: got \d+ without logprobs",
    r"max_tokens: got 0 without echo",
    r"best_of: got -?\d+, .* expected n = ",
    r"parameters\.n: got \d+, expected 1",
    r"parameters\.best_of: got \d+, expected 1",
    r"inputs: got a list, expected a string: a stream",
    r"rid: got \d+ ids for \d+ prompts",
    r"text: missing, expected text or input_ids",
    r"parameters\.do_sample: got \w+ with temperature",
    r"chat_template_kwargs\..*: expected the name of a template variable",
    r"got \d+ answers for each of \d+ prompts",
    r"receipt: got it for an answer that is not deterministic",
    # Whether it is a schema, a regex or a grammar is found out by compiling it.
    r"^(response_format|structured_outputs|guided_\w+|tools|(sampling_params\.)?(json_schema|regex|ebnf)|"
    r"(parameters\.)?grammar): ",
    r"fingerprint: expected short strings by name",
    r"parameters: min_tokens: got \d+, at most max_tokens",
    r"parameters: seed: got \d+, ",  # 64 bits, as a string
]


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Drop "valid, but refused" where one of the rules says why; the summary counts them.

    And "invalid, but accepted" of a receipt that was found not to hold, and the page, which is no
    part of the description.
    """
    if failure.code == "ST204" and case.path == "/" and case.method == "GET":
        return "text/html" not in response.headers["content-type"][0]
    if case.path == "/verify" and failure.code == "ST201" and response.status_code == 200:
        return bool(response.json()["match"])
    if failure.code != "ST202" or response.status_code != 400:
        return True
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]  # TGI's
    return not any(re.search(rule, message) for rule in RULES)
