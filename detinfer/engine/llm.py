"""Offline generation, embeddings and scores, in the caller's own process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, cast

from detinfer.chat_template import Message, render_chat
from detinfer.config import EngineConfig
from detinfer.engine.embedding import Embedding
from detinfer.engine.engine import Engine
from detinfer.engine.outputs import Completion
from detinfer.engine.scoring import Score, check_pairs
from detinfer.engine.validation import encode_text
from detinfer.errors import ConfigError, RequestError
from detinfer.params import PoolingParams, SamplingParams, choices
from detinfer.rounding import contract_rounding

Prompt = str | Sequence[int]
AnswerT = TypeVar("AnswerT", Completion, Embedding)


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
        batch = _several(prompts)
        each = _one_for_each(params, len(batch))
        return self._answers(
            Completion,
            (
                (token_ids, choice)
                for token_ids, chosen in zip(map(self._token_ids, batch), each, strict=True)
                for choice in choices(chosen)
            ),
        )

    @contract_rounding()
    def embed(
        self,
        prompts: str | Sequence[Prompt],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        dimensions: int | None = None,
        deterministic: bool = True,
    ) -> list[Embedding]:
        """Return a vector of every prompt, in the prompts' order.

        Args:
            prompts: as ``generate`` takes them.
            pooling: of the tokens' final hidden states: their mean, or the last one.
            normalize: to length 1.
            dimensions: how many of its first numbers are kept, before that; None keeps all.
            deterministic: whether the bits must not depend on the batch.

        Raises:
            RequestError: as ``generate`` raises it.
            KeyboardInterrupt: likewise.
        """
        params = PoolingParams(pooling, normalize, dimensions, deterministic)
        batch = _several(prompts)
        return self._answers(Embedding, ((self._token_ids(one), params) for one in batch))

    @contract_rounding()
    def score(
        self,
        text_1: str | Sequence[Prompt],
        text_2: str | Sequence[Prompt],
        *,
        pooling: Literal["mean", "last"] = "mean",
        deterministic: bool = True,
    ) -> list[Score]:
        """Return how alike the prompts of each pair are, by their vectors.

        Args:
            text_1: one prompt, or as many as ``text_2``; as ``generate`` takes them.
            text_2: each pair's other prompt.
            pooling: as ``embed`` has it.
            deterministic: likewise.

        Raises:
            RequestError: as ``generate`` raises it; prompts that make no pairs.
            KeyboardInterrupt: likewise.
        """
        first, second = _several(text_1), _several(text_2)
        check_pairs(("text_1", "text_2"), len(first), len(second))
        vectors = self.embed([*first, *second], pooling=pooling, deterministic=deterministic)
        firsts, seconds = vectors[: len(first)], vectors[len(first) :]
        return [Score.of(firsts[i % len(firsts)], one) for i, one in enumerate(seconds)]

    def _answers(
        self,
        kind: type[AnswerT],
        asked: Iterable[tuple[list[int], SamplingParams | PoolingParams]],
    ) -> list[AnswerT]:
        self._calls += 1
        answers: dict[str, AnswerT] = {}
        # An interrupt may come at any point, in the inner clean-up too; then the outer one runs.
        try:
            try:
                self._run(kind, asked, answers)
            finally:
                self.engine.discard(answers)
        finally:
            self.engine.discard(answers)
        return list(answers.values())

    def _run(
        self,
        kind: type[AnswerT],
        asked: Iterable[tuple[list[int], SamplingParams | PoolingParams]],
        answers: dict[str, AnswerT],
    ) -> None:
        fingerprint = self.engine.info.system_fingerprint
        for token_ids, params in asked:
            request_id = f"generate-{self._calls}-{len(answers)}"
            answers[request_id] = kind(token_ids, params.deterministic, fingerprint)
            self.engine.add_request(request_id, token_ids, params)
        while any(one.finish_reason is None for one in answers.values()):
            for output in self.engine.step():
                answers[output.request_id].add(output)

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


def _several(prompts: str | Sequence[Prompt]) -> list[Prompt]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _one_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"params: got {len(params)} for {count} prompts", "params")
    return params
