"""Calls in what a model writes of its own accord: whole ones are told, all else is content."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detinfer.config import REASONING_PARSERS, TOOL_CALL_PARSERS
from detinfer.server.api.openai.tools import found
from detinfer.server.api.openai.tools.families import FAMILIES
from detinfer.server.api.openai.tools.found import FoundCalls
from detinfer.server.api.openai.tools.pieces import Reader
from detinfer.server.api.openai.tools.thoughts import Thoughts

NAMES = ("get_weather", "f.g-h")
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
BRACES = '{"name": "f.g-h", "parameters": {"a": "}]\\"</tool_call>", "b": [{}, []]}}'
SHOWN = {
    PARIS: ("get_weather", '{"city": "Paris"}'),
    BRACES: ("f.g-h", '{"a": "}]\\"</tool_call>", "b": [{}, []]}'),
}
MARKED = {
    "hermes": lambda *calls: "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls),
    "llama3_json": lambda *calls: "<|python_tag|>" + "; ".join(calls),
    "mistral": lambda *calls: f"[TOOL_CALLS] [{', '.join(calls)}]",
    "json": lambda *calls: f"[{', '.join(calls)}]",
}


def by_name(call, call_id=""):
    """A call as later Mistral models write it."""
    name, arguments = SHOWN[call]
    return f"[TOOL_CALLS]{name}{call_id}[ARGS]{arguments}"


NO_CALLS = [
    "",
    " \n ",
    "Hello, world.",
    "a < b <tool",
    "<tool_call>",
    "<tool_call>\nno JSON</tool_call>",
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par',
    '<tool_call>{"name": "nobody", "arguments": {}}</tool_call> and on',
    '<tool_call>{"name": "get_weather", "arguments": "x"}</tool_call>',
    '<tool_call>{"name": 5}</tool_call>',
    '<tool_call>{"name": "get_weather", "arguments": {"x": NaN}}</tool_call>',
    '<tool_call>{"name": "get_weather", "arguments": {"x": 1e999}}</tool_call>',
    "<tool_call>[]</tool_call>",
    "[TOOL_CALLS]",
    "[TOOL_CALLS] [TOOL_CALLS",
    "[TOOL_CALLS]get_weather",
    "[TOOL_CALLS]get_weather is what I call",
    "[TOOL_CALLS]get_weather[ARGS]",
    "[TOOL_CALLS]get_weather[ARGS]5",
    "[TOOL_CALLS]get_weather[ARGS][]",
    "[TOOL_CALLS]get_weather[CALL_ID]1[NAME]{}",
    "[TOOL_CALLS]nobody[ARGS]{}",
    '[TOOL_CALLS]get_weather[ARGS]{"a": ',
    f"[TOOL_CALLS]{'x' * 65}[ARGS]{{}}",
    "<|python_tag|>print(1)",
    "<|python",
    '{"answer": 42}',
    "{not JSON}",
    "[1, 2, 3]\n",
    f"text, then {PARIS}",
    "[" + PARIS,
    "{" * 1000 + "}" * 1000,
]


def merged(pieces):
    """The same pieces, neighbours of one kind joined."""
    joined = []
    for kind, text in pieces:
        if joined and kind == joined[-1][0] != "call":
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


def read(stage, *texts):
    pieces = [piece for text in texts for piece in stage.push(text)]
    return merged([*pieces, *stage.finish()])


def told(*calls):
    return [
        piece for call in calls for piece in zip(("call", "arguments"), SHOWN[call], strict=True)
    ]


def finder(family, **options):
    return FoundCalls(FAMILIES[family], NAMES, **options)


def test_flags_name_the_families():
    assert ("auto", *FAMILIES) == TOOL_CALL_PARSERS
    assert REASONING_PARSERS[0] == "none"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("calls", [(PARIS,), (BRACES, PARIS), (PARIS, PARIS, BRACES)])
@pytest.mark.parametrize("around", ["", "\n"])
def test_a_familys_calls_are_told_and_nothing_else(family, calls, around):
    text = around + MARKED[family](*calls) + around
    assert read(finder(family), text) == told(*calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_at_most_where_asked(family):
    text = MARKED[family](PARIS, BRACES)
    assert read(finder(family, single=True), text) == told(PARIS)


@pytest.mark.parametrize("family", ["hermes", "mistral"])
def test_text_around_calls_is_content(family):
    text = f" Well.\n\n{MARKED[family](PARIS)}\n\nDone. "
    expected = [("content", " Well."), *told(PARIS), ("content", "Done. ")]
    assert read(finder(family), text) == expected


@pytest.mark.parametrize("text", [PARIS, f"{PARIS};{BRACES}", f"\n[{PARIS}, {BRACES}]"])
def test_llama_and_json_need_no_mark(text):
    calls = [call for call in (PARIS, BRACES) if call in text]
    assert read(finder("llama3_json"), text) == told(*calls)


@pytest.mark.parametrize("call_id", ["", "[CALL_ID]a1b2c3d4e"])
def test_mistrals_later_form(call_id):
    text = "".join(by_name(call, call_id) for call in (BRACES, PARIS))
    whole = f"Well. {text}\nDone."
    expected = [("content", "Well."), *told(BRACES, PARIS), ("content", "Done.")]
    assert read(finder("mistral"), whole) == expected
    for at in range(len(whole)):
        assert read(finder("mistral"), whole[:at], whole[at:]) == expected


def test_a_mark_that_is_left_open_ends_with_the_answer():
    assert read(finder("hermes"), f"<tool_call>{PARIS}") == told(PARIS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", NO_CALLS)
def test_text_that_is_no_call_is_content_to_the_letter(family, text):
    assert read(finder(family), text) == ([("content", text)] if text else [])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_gives_the_same(family):
    mark = MARKED[family]
    calls = [mark(PARIS, BRACES), f" Well.\n{mark(BRACES)}\n{mark(PARIS)[:-9]}"]
    for text in (*NO_CALLS, *calls):
        whole = read(finder(family), text)
        assert read(finder(family), *text) == whole
        for at in range(len(text) if len(text) < 500 else 0):
            assert read(finder(family), text[:at], text[at:]) == whole


def test_the_cut_would_matter_if_the_mark_were_not_awaited(monkeypatch):
    """The test above finds a reader that gives out the beginning of a mark."""
    monkeypatch.setattr(found, "held_back", lambda text, mark: 0)
    text = MARKED["hermes"](PARIS)
    assert read(finder("hermes"), text) == told(PARIS)
    assert read(finder("hermes"), *text) == [("content", text)]


MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>"]
MARKS += ["[ARGS]", "[CALL_ID]", "say", "get_weather"]
PARTS = st.sampled_from([PARIS, BRACES, *MARKS, *' \n{}[]"\\,;<é', "text"])


@given(st.lists(PARTS, max_size=12), st.sampled_from(sorted(FAMILIES)), st.data())
def test_any_text_cut_anywhere_gives_the_same_and_loses_nothing(parts, family, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = zip([0, *cuts], [*cuts, len(text)], strict=True)
    pieces = [text[start:stop] for start, stop in bounds]
    for make in (
        lambda: finder(family),
        lambda: Thoughts(False),
        lambda: Reader([Thoughts(True), finder(family)]),
    ):
        whole = read(make(), text)
        assert read(make(), *pieces) == whole
    whole = read(finder(family), text)
    kept = "".join(text for kind, text in whole if kind == "content")
    if not any(kind == "call" for kind, _ in whole):
        assert kept == text
    else:  # what is missing is calls, their marks and white space
        left = iter(text)
        assert all(character in left for character in kept)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a\n</think>\n\nb", [("reasoning", "a\n"), ("content", "\n\nb")]),
        ("\n<think>a</think>b", [("reasoning", "a"), ("content", "b")]),
        ("<think>never ends </thin", [("reasoning", "never ends </thin")]),
        ("<think></think>b", [("content", "b")]),
        ("", []),
    ],
)
def test_reasoning_is_set_apart(text, expected, inside):
    assert read(Thoughts(inside), text) == expected
    assert read(Thoughts(inside), *text) == expected


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [("a</think>b<think>", "a", "b<think>"), ("a < b", "a < b", ""), (" \n", " \n", "")],
)
def test_where_a_text_without_mark_begins_is_said(text, reasoning, content):
    pairs = [("reasoning", reasoning), ("content", content)]
    assert read(Thoughts(True), *text) == [pair for pair in pairs if pair[1]]
    assert read(Thoughts(False), *text) == [("content", text)]


def test_calls_are_found_behind_reasoning_only():
    call = MARKED["hermes"](PARIS)
    text = f"<think>perhaps {call}</think>\n\n{call}"
    expected = [("reasoning", f"perhaps {call}"), *told(PARIS)]
    assert read(Reader([Thoughts(False), finder("hermes")]), *text) == expected


def test_arguments_are_json():
    for call, (_, arguments) in SHOWN.items():
        value = json.loads(call)
        assert json.loads(arguments) == value.get("arguments", value.get("parameters"))
