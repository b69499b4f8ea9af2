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


class StatusCounter:
    """Counts statuses 429 and 5xx of one server's answers while it is entered."""

    def __init__(self, url: str | None) -> None:
        """`url`: how the server's addresses begin; None: every request of the process counts."""
        self.rate_limited = 0
        self.server_errors = 0
        self._url = url

    def count(self, url: str, status: int) -> None:
        """An answer came."""
        if self._url is None or url.startswith(self._url):
            self.rate_limited += status == 429
            self.server_errors += status >= 500

    def __enter__(self) -> Self:
        _listening.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _listening.remove(self)


class _Listening(logging.Filter):
    """One filter for all counters, because a record that one filter holds back is shown to no other."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._counters: tuple[StatusCounter, ...] = ()
        self._own_level = logging.NOTSET
        self._shown_from = logging.WARNING

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging with every record of httpx."""
        arguments = record.args
        if isinstance(arguments, tuple) and len(arguments) == _FIELDS and isinstance(arguments[3], int):
            status = arguments[3]
            if status == 429 or status >= 500:
                for counter in self._counters:
                    counter.count(str(arguments[1]), status)
        return record.levelno >= self._shown_from

    def add(self, counter: StatusCounter) -> None:
        logger = logging.getLogger(_LOGGER)
        with self._lock:
            if not self._counters:
                self._own_level, self._shown_from = logger.level, logger.getEffectiveLevel()
                logger.addFilter(self)
                logger.setLevel(min(logging.INFO, self._shown_from))
            self._counters = (*self._counters, counter)

    def remove(self, counter: StatusCounter) -> None:
        logger = logging.getLogger(_LOGGER)
        with self._lock:
            self._counters = tuple(each for each in self._counters if each is not counter)
            if not self._counters:
                logger.removeFilter(self)
                logger.setLevel(self._own_level)


_listening = _Listening()
