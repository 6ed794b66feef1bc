"""``POST /verify``: whether a receipt holds, by replaying it on the model that is served."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import EngineInfo
from detinfer.errors import ConfigError, RequestError
from detinfer.receipts.reading import read_json
from detinfer.receipts.receipt import Receipt, ReceiptError
from detinfer.receipts.verdict import Comparison, Finding, Verdict, examine, refused
from detinfer.server.api.bodies import receipt as described
from detinfer.server.api.openapi import answered, body_of, failures
from detinfer.server.errors import GenerationError
from detinfer.server.generation import Job, run_jobs
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.service import Service
from detinfer.server.tokenizing import aside
from detinfer.server.wire import json_response

router = APIRouter()


class ReceiptFinding(BaseModel):
    """A part that does not hold, or the token, counted from 1; which fingerprint parts differ."""

    part: str
    message: str
    token: int | None
    fingerprint_parts: list[str]


class ReceiptVerdict(BaseModel):
    """Whether a receipt holds; ``tokens`` is how many were verified, in ``seconds``."""

    match: bool
    findings: list[ReceiptFinding]
    tokens: int
    signed_by: str | None
    seconds: float | None


@router.post(
    "/verify",
    responses={**answered(ReceiptVerdict), **failures(400, 401, 408, 413, 429, 500, 503, 504)},
    openapi_extra=body_of(described.Receipt),
)
async def verify(request: Request) -> Response:
    """Replay a receipt on the served model, many tokens a step, and tell what does not hold."""
    service = Service.of(request)
    engine = service.ready_engine()
    content = await request.body()
    receipt, verdict = await aside(len(content), _examined, content, engine.info)
    if verdict.match:
        salt = service.salted(request)
        with service.answering():
            await until_disconnect(request.receive, _replay(engine, receipt, verdict, salt))
    return json_response(verdict.to_value())


def _examined(content: bytes, info: EngineInfo) -> tuple[Receipt, Verdict]:
    try:
        return examine(read_json(content), info)
    except (ReceiptError, ConfigError) as error:  # no receipt, or nothing here reads its signature
        part = str(error).partition(":")[0]
        raise RequestError(str(error), part if isinstance(error, ReceiptError) else None) from None


async def _replay(engine: AsyncEngine, receipt: Receipt, verdict: Verdict, salt: str) -> None:
    """Compare a receipt with what the engine makes of it, from nothing: no cached page is used."""
    name = f"verify-{uuid.uuid4().hex}"
    job = Job(
        name,
        list(receipt.prompt_token_ids),
        receipt.params,
        cache_salt=f"{salt}/{name}",
        answer=receipt.token_ids,
    )
    comparison, began = Comparison(receipt, verdict), time.perf_counter()
    try:
        async with aclosing(run_jobs(engine, [job])) as batches:
            async for [(_, output)] in batches:
                if not comparison.add(output):
                    break
    except RequestError as error:
        verdict.findings.append(refused(error))
    except GenerationError as error:
        verdict.findings.append(Finding("answer", f"the replay failed: {error}"))
    else:
        verdict.seconds = time.perf_counter() - began
