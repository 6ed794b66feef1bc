"""Offline generation in the caller's own process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from detinfer.chat_template import Message, render_chat
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.outputs import Completion
from detinfer.engine.validation import encode_text
from detinfer.errors import ConfigError, RequestError
from detinfer.params import SamplingParams, choices
from detinfer.rounding import contract_rounding

Prompt = str | Sequence[int]


class LLM:
    """A model, ready to generate.

    Args:
        model: folder, ``.gguf`` file or hub id; None, or its name, is the default model.
        engine: an engine to drive instead of loading one.
        settings: any other field of ``EngineConfig``.

    Raises:
        ConfigError: on a setting that does not exist or cannot work.
        ModelLoadError: if the model cannot be found or read.
        UnsupportedModelError: if its bits cannot be guaranteed.
    """

    def __init__(
        self, model: str | None = None, *, engine: Engine | None = None, **settings: Any
    ) -> None:
        known = [f.name for f in fields(EngineConfig)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"{name}: no such setting, expected one of {', '.join(known)}")
        self.engine = engine or Engine(EngineConfig(model=model, **settings))
        self._calls = 0

    @contract_rounding()  # some tokenizers add up scores
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer every conversation, as the model's chat template spells it.

        Args:
            messages: a conversation, such as ``[{"role": "user", "content": "Hello"}]``, or a list
                of conversations.
            params: one for all, or one for each; None is ``SamplingParams()``.

        Returns:
            The answers in the conversations' order, ``n`` for each.

        Raises:
            RequestError: if the model has no chat template, or it refuses the messages, or a
                request cannot be served; nothing has run then.
        """
        return self.generate(
            [render_chat(self.engine.tokenizer, one) for one in _conversations(messages)], params
        )

    @contract_rounding()
    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Completes every prompt; the answers come in the prompts' order, ``n`` for each.

        Args:
            prompts: a string, a list of strings, or a list of lists of token ids.
            params: one for all, or one for each; None is ``SamplingParams()``.

        Raises:
            RequestError: if a prompt or its parameters cannot be served; nothing has run then.
            KeyboardInterrupt: on Ctrl-C; nothing is left of the call, and another one works.
        """
        batch: list[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)
        each = _one_for_each(params, len(batch))
        self._calls += 1
        completions: dict[str, Completion] = {}
        # An interrupt may come at any point, in the inner clean-up too; then the outer one runs.
        try:
            try:
                self._run(batch, each, completions)
            finally:
                self.engine.discard(completions)
        finally:
            self.engine.discard(completions)
        return list(completions.values())

    def _run(
        self,
        batch: Sequence[Prompt],
        each: Sequence[SamplingParams],
        completions: dict[str, Completion],
    ) -> None:
        for prompt, chosen in zip(batch, each, strict=True):
            token_ids = self._token_ids(prompt)
            for choice in choices(chosen):
                request_id = f"generate-{self._calls}-{len(completions)}"
                completions[request_id] = Completion(
                    token_ids, choice.deterministic, self.engine.info.system_fingerprint
                )
                self.engine.add_request(request_id, token_ids, choice)
        while any(c.finish_reason is None for c in completions.values()):
            for output in self.engine.step():
                completions[output.request_id].add(output)

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return encode_text(self.engine.tokenizer, prompt)
        if isinstance(prompt, Sequence):
            return list(cast("Sequence[int]", prompt))
        raise RequestError(
            f"prompts: got {type(prompt).__name__}, expected a string, a list of strings or a "
            "list of lists of token ids",
            "prompts",
        )


def _conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    def good(value: object, kind: type) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(one, kind) for one in value)

    if good(messages, Mapping):
        return [cast("Sequence[Message]", messages)] if messages else []
    if isinstance(messages, list | tuple) and all(good(one, Mapping) for one in messages):
        return list(cast("Sequence[Sequence[Message]]", messages))
    raise RequestError(
        "messages: expected a list of messages, such as "
        '[{"role": "user", "content": "Hello"}], or a list of such lists',
        "messages",
    )


def _one_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"params: got {len(params)} for {count} prompts", "params")
    return params
