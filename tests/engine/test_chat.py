"""Conversations: LLM.chat, ``detinfer generate --chat`` and ``detinfer chat``, on a fake model."""

import io
import json
import signal
import sys

import pytest
from fake_runner import FakeRunner, FakeTokenizer, fake_engine

from detinfer import LLM, SamplingParams, cli
from detinfer.errors import RequestError


class ChatTokenizer(FakeTokenizer):
    """``u:hi|`` for a user's message, and ``a:`` for the answer to come."""

    chat_template = "there is one"

    def apply_chat_template(
        self, messages, tokenize, add_generation_prompt, continue_final_message
    ):
        assert tokenize is False
        text = "".join(f"{m['role'][0]}:{m['content']}|" for m in messages)
        return text + "a:" * add_generation_prompt


def chat_engine(**options):
    runner = FakeRunner(**options)
    runner.tokenizer = ChatTokenizer()
    return fake_engine(runner=runner)


def say(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_chat_is_the_templates_prompt():
    llm, params = LLM(engine=chat_engine()), SamplingParams(max_tokens=9)
    [got] = llm.chat(say("hi"), params)
    assert [got] == llm.generate("u:hi|a:", params)
    [one, two] = llm.chat([say("hi"), say("a", "b", "c")], params)
    assert one == got
    assert [two] == llm.generate("u:a|a:b|u:c|a:", params)
    assert llm.chat([]) == []


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "expected a list of messages"),
        ({"role": "user", "content": "hi"}, "expected a list of messages"),
        ([["hi"]], "expected a list of messages"),
        ([*say("hi"), say("hi")], "expected a list of messages"),
        ([[]], "got an empty list, expected at least one message"),
        ([{"content": "hi"}], "the model's chat template refuses them: 'role'"),
        (say("a \udcff b"), "got text that is not valid UTF-8"),
    ],
)
def test_messages_that_are_none_are_refused_in_one_line(messages, words):
    llm = LLM(engine=chat_engine())
    with pytest.raises(RequestError, match=r"^messages: ") as caught:
        llm.chat(messages)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not llm.engine.has_unfinished()


def test_a_model_without_a_template_is_not_for_chat(monkeypatch, capsys):
    tokenizer = ChatTokenizer()
    tokenizer.chat_template = None
    engine = chat_engine()
    engine.tokenizer = tokenizer
    with pytest.raises(RequestError, match="this model has no chat template"):
        LLM(engine=engine).chat(say("hi"))
    monkeypatch.setattr("detinfer.cli.chat.Engine", lambda config: engine)
    assert cli.main(["chat"]) == 2
    assert capsys.readouterr().err == (
        "detinfer: error: model fake: has no chat template, use detinfer generate\n"
    )


@pytest.mark.parametrize(
    ("flags", "terminal", "prompt"),
    [
        ([], True, "u:hi|a:"),
        ([], False, "hi"),
        (["--no-chat"], True, "hi"),
        (["--chat"], False, "u:hi|a:"),
    ],
)
def test_generate_is_chat_in_a_terminal_or_when_told(flags, terminal, prompt, monkeypatch, capsys):
    monkeypatch.setattr("detinfer.cli.generate.Engine", lambda config: chat_engine())
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert cli.main(["generate", "-p", "hi", "--json", "--max-tokens", "5", *flags]) == 0
    [expected] = LLM(engine=chat_engine()).generate(prompt, SamplingParams(max_tokens=5))
    answer = json.loads(capsys.readouterr().out)
    assert answer["prompt_token_ids"] == expected.prompt_token_ids
    assert answer["digest"] == expected.digest


@pytest.mark.parametrize("flags", [["--no-chat"], ["--chat"]])
def test_an_empty_answer_to_a_raw_prompt_is_explained(flags, monkeypatch, capsys):
    engine = chat_engine()
    engine.runner.eos_token_ids = frozenset(range(97))
    engine = fake_engine(runner=engine.runner)
    monkeypatch.setattr("detinfer.cli.generate.Engine", lambda config: engine)
    assert cli.main(["generate", "-p", "hi", *flags]) == 0
    explained = "the answer is empty: this model is made for chat, try --chat"
    assert (explained in capsys.readouterr().err) == (flags == ["--no-chat"])


class Talk:
    """``detinfer chat`` with these lines typed: what it printed, and the engine it used."""

    def __init__(self, monkeypatch, capsys, lines, flags=(), engine=None):
        self.engine = engine or chat_engine()
        monkeypatch.setattr("detinfer.cli.chat.Engine", lambda config: self.engine)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        self.status = cli.main(["chat", *flags])
        out, err = capsys.readouterr()
        self.answers, self.said = out.splitlines(), err.splitlines()
        self.engine.check_integrity()
        assert self.engine.block_manager.num_free == self.engine.block_manager.num_pages


PLAIN = ["--max-tokens", "6", "--no-speculation"]


def test_a_conversation_keeps_its_history_and_shows_each_digest(monkeypatch, capsys):
    talk = Talk(monkeypatch, capsys, ["hi", "", "so?", "/new", "hi", "/quit", "hi"], PLAIN)
    assert talk.status == 0
    llm, params = LLM(engine=chat_engine()), SamplingParams(max_tokens=6)
    [first] = llm.chat(say("hi"), params)
    [second] = llm.chat(say("hi", first.text, "so?"), params)
    assert talk.answers == [first.text, second.text, first.text]
    digests = [line.split()[1] for line in talk.said if line.startswith("digest")]
    assert digests == [first.digest, second.digest, first.digest]


def test_a_system_message_begins_every_conversation(monkeypatch, capsys):
    talk = Talk(monkeypatch, capsys, ["hi", "/new", "hi"], [*PLAIN, "--system", "be:kind"])
    [answer] = LLM(engine=chat_engine()).generate("s:be:kind|u:hi|a:", SamplingParams(max_tokens=6))
    assert talk.answers == [answer.text] * 2


def test_ctrl_c_stops_an_answer_and_nothing_else(monkeypatch, capsys):
    engine = chat_engine()
    step, steps = engine.step, []

    def interrupted():
        steps.append(None)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return step()

    engine.step = interrupted
    before = signal.getsignal(signal.SIGINT)
    talk = Talk(monkeypatch, capsys, ["hi", "hi"], ["--max-tokens", "40"], engine)
    assert signal.getsignal(signal.SIGINT) is before
    reasons = [line.split()[-1] for line in talk.said if line.startswith("digest")]
    assert reasons[0] == "abort"
    assert reasons[1] in ("stop", "length")
    [whole] = LLM(engine=chat_engine()).chat(say("hi"), SamplingParams(max_tokens=40))
    assert whole.text.startswith(talk.answers[0])
    assert 0 < len(talk.answers[0]) < len(whole.text)


def test_ctrl_c_at_the_prompt_and_strange_commands_say_what_there_is(monkeypatch, capsys):
    typed = iter([KeyboardInterrupt(), "/bye", EOFError()])

    def read(prompt):
        got = next(typed)
        if isinstance(got, BaseException):
            raise got
        return got

    monkeypatch.setattr("builtins.input", read)
    talk = Talk(monkeypatch, capsys, [])
    assert talk.status == 0
    assert [line.count("/quit or Ctrl-D ends") for line in talk.said] == [1, 1, 1]
    assert "/bye: no such command" in talk.said[2]


def test_what_does_not_fit_the_models_length_is_one_line(monkeypatch, capsys):
    talk = Talk(monkeypatch, capsys, ["x" * 393, "x" * 500, "hi"], ["--max-tokens", "6"])
    assert talk.status == 0
    cut, refused = talk.said[2], talk.said[3]
    assert cut == "detinfer: cut off after 2 tokens by the model's length"
    assert "leaves no room for an answer in the model's length of 400; /new forgets" in refused
    assert "error" in talk.said[4]  # the history is as long as before
