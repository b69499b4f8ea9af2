"""What the SDK raises, as errors of the backend ports.

Classes are told apart by their names and status codes, which both SDK lines and its in-memory double share, so that nothing of it has to be imported here.
A key never gets into a message.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
from collections.abc import Sequence
from typing import Any

from engine.backends.errors import BackendError, RequestRejected, TransientError

_PASSING = {408, 409, 410, 425, 429}
"""Statuses that trying again may mend, beside 5xx."""
_STATUS_IN_TEXT = re.compile(r"\bstatus(?:_code)?[ =:]+(\d{3})\b")
_DETAIL = re.compile(r"""['"]detail['"]: (['"])(.*?)\1[,}]""")
"""A server's own words inside those of the SDK."""
_KEY = re.compile(r"\btml-[\w-]+")
_NOISE = re.compile(r"\s*(?:for|and) (?:self\.request_id|expected type self\.model_cls|self\.model_cls)=\S+", re.ASCII)


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, where there is one."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status
    found = _STATUS_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def is_missing(error: BaseException) -> bool:
    """Whether a server says that it has no such thing (any more): an error of the SDK's, or of the ports made from one."""
    return 404 in (status_of(error), status_of(error.__cause__) if error.__cause__ is not None else None)


def as_backend_error(error: BaseException, doing: str) -> BackendError:
    """`error` as a port's error, `doing` first in its message. Errors of the ports pass as they are."""
    if isinstance(error, BackendError):
        return error
    kind = _kind_of(error)
    return kind(f"{doing}: {_said(error)}")


def _kind_of(error: BaseException) -> type[BackendError]:
    if isinstance(error, concurrent.futures.CancelledError | asyncio.CancelledError):
        return BackendError
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"APIConnectionError", "RetryableException"} or isinstance(error, TimeoutError | ConnectionError):
        return TransientError
    if "RequestFailedError" in names:
        category = str(getattr(getattr(error, "category", None), "value", getattr(error, "category", ""))).lower()
        return {"user": RequestRejected, "server": TransientError}.get(category, BackendError)
    status = status_of(error)
    if status is None:
        return BackendError
    if status in _PASSING or status >= 500:
        return TransientError
    return BackendError if status in {401, 402, 403} else RequestRejected


def _said(error: BaseException) -> str:
    if isinstance(error, concurrent.futures.CancelledError | asyncio.CancelledError):
        return "it was cancelled"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    status = status_of(error)
    advice = {
        401: "the API key is refused (TINKER_API_KEY, or api_key=)",
        402: "the account's billing does not allow it",
        403: "the API key is not allowed to do this",
    }.get(status or 0)
    place = _place(getattr(error, "body", None))
    if place is None and (detail := _DETAIL.search(str(error))):
        place = detail[2]
    text = place or _NOISE.sub("", str(getattr(error, "message", None) or error)).strip() or type(error).__name__
    parts = [
        part for part in (advice, text, f"status {status}" if status and str(status) not in text else None) if part
    ]
    return _KEY.sub("tml-***", "; ".join(parts))


def _place(body: Any) -> str | None:
    """A validating server's complaint as `datum 3: 'weights': ...`; None where the body holds none."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, str):
        return detail
    if not isinstance(detail, Sequence) or not detail or not isinstance(detail[0], dict):
        return None
    first = detail[0]
    location = [part for part in first.get("loc", ()) if part not in ("body", "forward_backward_input")]
    words = []
    if "data" in location[:-1] and isinstance(location[location.index("data") + 1], int):
        index = location.index("data")
        words.append(f"datum {location[index + 1]}")
        location = [*location[:index], *location[index + 2 :]]
    field = [str(part) for part in location if part != "loss_fn_inputs"]
    if field:
        words.append(repr(".".join(field)))
    more = f" (and {len(detail) - 1} more)" if len(detail) > 1 else ""
    return ": ".join([*words, f"{first.get('msg', 'refused')}{more}"])
