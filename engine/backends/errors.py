"""Errors of the backend ports. A class is here only because somebody catches it.

BackendError
├── TransientError      try again: a timeout, a rate limit, a busy or restarting server      (the sampler retries it)
├── RequestRejected     trying again cannot help: names the datum and the field              (ends the group or the run)
│   └── ContextExceeded a conversation that leaves no room for an answer                     (an evaluation counts it as not answered)
└── UnusableState       a saved state that cannot be restored                                (resume falls back to the one before)

And one warning, IgnoredSetting, for what a backend is asked and cannot do, where a run is of use without it.
"""

from __future__ import annotations


class BackendError(Exception):
    """Something a backend could not do."""


class TransientError(BackendError):
    """A failure that trying again may mend."""


class RequestRejected(BackendError):
    """A request that is wrong in itself."""


class ContextExceeded(RequestRejected):
    """A conversation that has outgrown the model's context."""


class UnusableState(BackendError):
    """A saved state that cannot be restored: incomplete, damaged, or of another model."""


class IgnoredSetting(UserWarning):
    """A setting that has no effect on this backend: which, and what that means. Given once for each backend that is opened."""
