"""``GET /``, a page to try the server with, and ``GET /docs``: files that hold nothing secret."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from detinfer.server.http.files import read_files

router = APIRouter(include_in_schema=False)

_PAGE = Path(__file__).parents[1] / "page"
_SWAGGER = Path(str(distribution("fastapi-offline").locate_file("fastapi_offline/static")))
_FILES = read_files(
    [*_PAGE.iterdir(), _SWAGGER / "swagger-ui-bundle.js", _SWAGGER / "swagger-ui.css"]
)
# Asked for without a key, by GET alone: POST / is a route of the engine's.
PUBLIC_PATHS = frozenset({"/", "/docs", *(f"/page/{name}" for name in _FILES)})

_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
_PAGE_POLICY = f"{_POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"
_DOCS_POLICY = f"{_POLICY}; img-src 'self' data:"  # Swagger UI's style sheet has its icons in it


@router.get("/")
async def page(request: Request) -> Response:
    """Return the page."""
    return _FILES["index.html"].response(request, _PAGE_POLICY)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Return the page that shows the description."""
    return _FILES["docs.html"].response(request, _DOCS_POLICY)


@router.get("/page/{name}")
async def file(request: Request, name: str) -> Response:
    """Return what one of the pages is made of."""
    if name not in _FILES:
        raise HTTPException(404)
    return _FILES[name].response(request, _PAGE_POLICY)
