"""Tools on ``/v1/chat/completions``: what the model is told of them."""

from __future__ import annotations

import json
from dataclasses import replace

from fake_engine import INFO, FakeEngine, byte_tokenizer
from tool_chats import HI, TOOLS, fake, post


def test_the_template_gets_tools_calls_and_what_they_gave(make_client):
    engine = fake()
    call = {"id": "c1", "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "18"}]},
        {"role": "assistant", "content": "It is 18."},
    ]
    post(make_client(engine), messages=history)
    expected = "get_weather;say;u:hi|a:<c1 get_weather Paris>|t:18get_weatherc1|a:It is 18.|"
    assert bytes(engine.prompts[0]).decode() == expected
    tokens = make_client(engine).post("/tokenize", {"messages": history, "tools": TOOLS}).json()
    assert tokens["tokens"] == engine.prompts[0]


PLAIN = (
    """<|im_start|>system
Be brief.

# Tools

Functions that you may call are described here, each by a line of JSON:
<tools>
"""
    + json.dumps(TOOLS[0])
    + """
{"type": "function", "function": {"name": "say", "description": "Says nothing.", """
    + """"parameters": {"type": "object", "properties": {}}}}
</tools>

To call a function, give its name and its arguments as a JSON object in this form:
<tool_call>
{"name": <name of the function>, "arguments": <object of its arguments>}
</tool_call><|im_end|>
<|im_start|>user
hi<|im_end|>
<|im_start|>assistant
I ask.
<tool_call>
{"name": "say", "arguments": {}}
</tool_call>
<tool_call>
{"name": "get_weather", "arguments": {"city": "é"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
18
</tool_response>
<tool_response>
no
</tool_response><|im_end|>
<|im_start|>assistant
"""
)


def test_a_template_without_tools_gets_them_in_plain_words(make_client):
    engine = FakeEngine(script=b"\0")
    engine.info = replace(INFO, max_model_len=4096, num_pages=64)
    calls = [
        {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in (("say", ""), ("get_weather", '{"city": "é"}'))
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        *HI,
        {"role": "assistant", "content": "I ask.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "say", "content": "18"},
        {"role": "tool", "tool_call_id": "get_weather", "content": "no"},
    ]
    client = make_client(engine)
    post(client, messages=messages)
    assert engine.prompts[0] == byte_tokenizer().encode(PLAIN)
    # Without a system message they make one; without tools only what was called is told.
    post(client)
    [_, begin, _] = PLAIN.partition("Be brief.\n\n")
    start = byte_tokenizer().encode(PLAIN.replace(begin, ""))[:200]
    assert engine.prompts[1][:200] == start
    post(client, messages=messages, tools=[])
    text = engine.tokenizer.decode(engine.prompts[2])
    assert "<tools>" not in text
    assert "<tool_response>\n18" in text


# As Gemma's and the first Mistral's are: no system message, and turns that take turns.
STRICT = """\
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}
{{- message.role }}:{{ message.content }}|
{%- endfor %}"""


def test_a_template_that_refuses_a_system_message_is_told_by_the_user(make_client):
    engine = fake(template=STRICT)
    call = {"id": "c", "type": "function", "function": {"name": "say", "arguments": "{}"}}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [call, call | {"id": "d"}]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "tool", "tool_call_id": "d", "content": "2"},
    ]
    post(make_client(engine), messages=history)
    text = bytes(engine.prompts[0]).decode()
    assert text.startswith("user:# Tools\n")
    assert "</tool_call>\n\nhi|assistant:<tool_call>" in text
    assert text.count("|") == 3
