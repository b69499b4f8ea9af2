"""How often a server said "later" or failed, and the SDK tried again by itself.

The SDK has no other place to learn that from than the line which httpx logs for each request. Counting it shows no line that was not shown before.
"""

from __future__ import annotations

import logging
import threading
from typing import Self

_LOGGER = "httpx"
_FIELDS = 5
"""Of httpx's line: method, URL, HTTP version, status, reason."""


class StatusCounter(logging.Filter):
    """Counts statuses 429 and 5xx of one server's answers while it is entered."""

    def __init__(self, url: str | None) -> None:
        """`url`: how the server's addresses begin; None: every request of the process counts."""
        super().__init__()
        self.rate_limited = 0
        self.server_errors = 0
        self._url = url
        self._shown_from = logging.WARNING

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging with every record of httpx."""
        arguments = record.args
        if isinstance(arguments, tuple) and len(arguments) == _FIELDS and isinstance(arguments[3], int):
            status = arguments[3]
            if (status == 429 or status >= 500) and (self._url is None or str(arguments[1]).startswith(self._url)):
                if status == 429:
                    self.rate_limited += 1
                else:
                    self.server_errors += 1
        return record.levelno >= self._shown_from

    def __enter__(self) -> Self:
        logger = logging.getLogger(_LOGGER)
        with _changing:
            if not _entered:
                _before[:] = [logger.level, logger.getEffectiveLevel()]
            _entered.append(self)
            self._shown_from = _before[1]
            logger.addFilter(self)
            logger.setLevel(min(logging.INFO, _before[1]))
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger(_LOGGER)
        with _changing:
            logger.removeFilter(self)
            _entered.remove(self)
            if not _entered:
                logger.setLevel(_before[0])


_changing = threading.Lock()
_entered: list[StatusCounter] = []
_before = [logging.NOTSET, logging.WARNING]
"""The logger's own level and the one in effect, before the first counter."""
