"""Answers that are no success, in OpenAI's form."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fedpeft.errors import ConfigInvalid, DataInvalid, FedpeftError
from fedpeft_client.serving.engine import Busy
from fedpeft_client.serving.requests import RequestRefused

__all__ = ["HANDLERS", "error_body"]


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of a failure."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _refusal(_request: Request, refused: Exception) -> Response:
    if isinstance(refused, Busy):
        body = error_body(str(refused), "server_error", code="busy")
        return JSONResponse(body, status_code=503, headers={"Retry-After": "1"})
    if isinstance(refused, RequestRefused | DataInvalid | ConfigInvalid):
        return JSONResponse(
            error_body(str(refused), "invalid_request_error", getattr(refused, "param", None)), status_code=400
        )
    return JSONResponse(error_body(str(refused), "server_error"), status_code=500)


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    codes = {401: "invalid_api_key", 404: "not_found"}
    message = error.detail if isinstance(error, HTTPException) else "The server failed."
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(
        error_body(message, "invalid_request_error", code=codes.get(status)), status_code=status, headers=headers
    )


async def _failure(_request: Request, _error_: Exception) -> Response:
    return JSONResponse(error_body("The server failed on this request; see its log.", "server_error"), status_code=500)


HANDLERS: Mapping[Any, Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    HTTPException: _http_error,
    FedpeftError: _refusal,
    Exception: _failure,
}
"""Exception -> what answers for it; for ``Starlette(exception_handlers=)``."""
