"""What the routes made of prompts' vectors share: fields, and the way from inputs to vectors."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field
from starlette.requests import Request

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import RequestOutput
from detinfer.engine.streams import MAX_OPEN_TOKENS
from detinfer.engine.validation import check_pooling
from detinfer.errors import RequestError
from detinfer.params import PoolingParams
from detinfer.server.api.bodies.fields import Name, Text, check_names, stated
from detinfer.server.api.bodies.neutral import Absent, Ignored, Neutral, NoOptions, Zero
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.reading import read
from detinfer.server.call import in_words_of_client
from detinfer.server.generation import Pooled, run_jobs
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.reply import MAX_HEADER_DIGESTS
from detinfer.server.service import Service
from detinfer.server.tokenizing import tokenize

MAX_INPUTS = 2048  # as at OpenAI
MAX_NUMBERS = 1 << 22  # of all vectors of a call: 90 MB as JSON

several = stated(minItems=1, maxItems=MAX_INPUTS)
Texts = Annotated[list[Text], Field(fail_fast=True), several]


class VectorsBody(StrictBody):
    """What every body has whose answer is made of vectors."""

    model: str | None = Field(None, description="the served one, if given")
    user: Ignored = None
    # Ours
    deterministic: bool | None = Field(None, description="the server's default unless given")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="of the tokens' final hidden states; mean unless given"
    )
    # vLLM's
    truncate_prompt_tokens: Absent = None
    truncation_side: Annotated[Any, Neutral("left", "right")] = None
    padding: Annotated[Any, Neutral("do_not_pad")] = None
    priority: Zero = None
    cache_salt: Name | None = Field(
        None, description="prefix-cache pages are shared by requests of one salt only"
    )
    mm_processor_kwargs: NoOptions = None


class EmbeddingUsage(BaseModel):
    """Token counts of all inputs."""

    prompt_tokens: int
    total_tokens: int


BodyT = TypeVar("BodyT", bound=VectorsBody)


@dataclass(frozen=True)
class VectorsCall(Generic[BodyT]):
    """A validated body, and what is to answer it.

    Attributes:
        params: of every vector.
    """

    request: Request
    service: Service
    engine: AsyncEngine
    body: BodyT
    params: PoolingParams

    @classmethod
    async def read(cls, request: Request, model: type[BodyT]) -> VectorsCall[BodyT]:
        """Return what a request asks for.

        Raises:
            DetinferError: as ``reading.read``; a field out of every model's range.
        """
        service, engine, body = await read(request, model)
        given = {
            name: value
            for name in ("pooling", "normalize", "dimensions", "deterministic")
            if (value := getattr(body, name, None)) is not None
        }
        params = PoolingParams(**({"deterministic": service.default_deterministic} | given))
        return cls(request, service, engine, body, params)

    async def vectors(
        self, inputs: Mapping[str, Sequence[Any]], prefix: str
    ) -> list[RequestOutput]:
        """Return the vector of every input, in their order.

        Args:
            inputs: texts, or lists of token ids, by the field that they came in.
            prefix: of the engine's names of them.

        Raises:
            RequestError: a field without an input, too many or too long ones, or a parameter out
                of the model's range.
        """
        check_names(self.body, "cache_salt")
        salt = self.service.salted(self.request)
        if self.body.cache_salt:
            salt = f"{salt}/{self.body.cache_salt}"
        prompts = await self._token_ids(inputs)
        name = f"{prefix}-{uuid.uuid4().hex}"
        jobs = [Pooled(f"{name}-{i}", ids, self.params, salt) for i, ids in enumerate(prompts)]
        return await until_disconnect(self.request.receive, self._gathered(jobs))

    async def _token_ids(self, inputs: Mapping[str, Sequence[Any]]) -> list[list[int]]:
        most = min(MAX_INPUTS, self.engine.capacity, MAX_NUMBERS // self.engine.info.hidden_size)
        before = 0
        for field, given in inputs.items():
            if not given or before + len(given) > most:
                got = f"{before + len(given)} in all" if before else f"{len(given)}"
                raise RequestError(f"{field}: got {got}, expected 1 to {most} at a time", field)
            if not all(given):
                raise RequestError(f"{field}: got an empty one, expected text or token ids", field)
            before += len(given)
        prompts = list[list[int]]()
        for field, given in inputs.items():
            prompts += await self._token_ids_of(field, given)
            if (tokens := sum(map(len, prompts))) > MAX_OPEN_TOKENS:
                raise RequestError(
                    f"{field}: got {tokens} tokens in all, expected at most {MAX_OPEN_TOKENS}",
                    field,
                )
        return prompts

    async def _token_ids_of(self, field: str, given: Sequence[Any]) -> Sequence[list[int]]:
        of_field = await tokenize(self.engine, given, field) if isinstance(given[0], str) else given
        try:
            for token_ids in of_field:
                check_pooling(token_ids, self.params, self.engine.info)
        except RequestError as error:
            raise in_words_of_client(error, {"prompt": field}) from None
        return of_field

    async def _gathered(self, jobs: Sequence[Pooled]) -> list[RequestOutput]:
        """Return what came of every job, in their order."""
        found: dict[int, RequestOutput] = {}
        with self.service.answering():
            async with aclosing(run_jobs(self.engine, jobs)) as outputs:
                async for batch in outputs:
                    found.update(batch)
        return [found[index] for index in range(len(jobs))]

    def frame(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Return what an answer says beside its data."""
        tokens = sum(output.prompt_tokens for output in outputs)
        return {
            "object": "list",
            "model": self.service.model_id(self.engine),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "system_fingerprint": self.engine.info.system_fingerprint,
            "deterministic": self.params.deterministic,
        }

    def headers(self, digests: Sequence[str]) -> dict[str, str]:
        """Return an answer's headers: all its digests, unless they are too many."""
        found = {"x-detinfer-deterministic": str(self.params.deterministic).lower()}
        if len(digests) <= MAX_HEADER_DIGESTS:
            found["x-detinfer-digest"] = ", ".join(digests)
        return found
