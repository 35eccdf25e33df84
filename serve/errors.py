"""What a request is refused with: a status, what is wrong, and how to mend it."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from rism.runtime.errors import InputError, one_line

HINTS = {
    400: "see /docs for what a request has",
    401: "send the server's key as 'Authorization: Bearer KEY' or 'Authorization: Token KEY'",
    404: "see /docs for what there is",
    405: "see /docs for the methods of this address",
    406: "ask for one expression, or for application/json",
    408: "send the request faster, or start the server with a larger --timeout",
    413: "send less, or start the server with a larger limit",
    415: "send multipart/form-data or application/json",
    422: "see /docs for what is allowed",
    429: "wait as Retry-After says, or start the server with a larger --queue",
    431: "send fewer and shorter headers",
    500: "see the server's log for this request id",
    503: "wait until /readyz answers 200",
    504: "ask for fewer expressions, or start the server with a larger --timeout",
}


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        error: object,
        *,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(one_line(error, limit=500))
        self.status = status
        self.hint = hint or HINTS.get(status, "see /docs")
        self.headers = headers


def error_response(
    status: int,
    error: object = None,
    *,
    hint: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Answer with `{"error", "hint"}`; the error is the status's name where none is given."""
    text = HTTPStatus(status).phrase if error is None else one_line(error, limit=500)
    body = {"error": text, "hint": hint or HINTS.get(status, "see /docs")}
    return JSONResponse(body, status, headers=dict(headers or {}))


def of_input(error: InputError) -> RequestError:
    """Turn what the library refuses into an answer; its messages end with what helps."""
    what, _, hint = str(error).rpartition(": ")
    return RequestError(422, what or hint, hint=hint if what else None)
