"""Errors of the endpoint, as clients of OpenAI's API read them."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def wrong(param: str, message: str, code: str | None = None) -> ApiError:
    """A field that cannot be served."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)
