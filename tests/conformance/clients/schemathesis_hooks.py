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
UNLIMITED = ("/tokenize", "/detokenize")  # generate nothing


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
    if case.path in UNLIMITED:
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
    r"stream_options: got \w+ without stream",
    r"prompt_logprobs: got it with stream",
    r"truncate_prompt_tokens: got 0, ",
    r"messages\.\d+\.content: got null, ",  # of any but an assistant
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
]


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Drop "valid, but refused" where one of the rules says why; the summary counts them."""
    if failure.code != "ST202" or response.status_code != 400:
        return True
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]  # TGI's
    return not any(re.search(rule, message) for rule in RULES)
