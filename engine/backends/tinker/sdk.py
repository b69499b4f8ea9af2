"""The official SDK as this backend uses it, whichever of its two lines is installed.

0.25 returns clients from methods that block, and has `*_async` twins; 0.38 returns futures of clients, and deprecates the twins. Here every call gives a
concurrent future at once. The SDK runs its requests in one daemon thread of its own, with an asyncio loop; a future cancelled here is a request cancelled there.
"""

from __future__ import annotations

import contextvars
import importlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import ModuleType
from typing import Any

import attrs

from engine.backends.errors import BackendError
from engine.backends.tinker.failures import as_backend_error

DEFAULT_SERVER = "the hosted Tinker service"


def load_sdk() -> ModuleType:
    """The SDK's module. Raises BackendError, in one line that says what to install, where there is none."""
    try:
        return importlib.import_module("tinker")
    except ImportError as error:
        if error.name != "tinker":
            raise BackendError(f"the tinker SDK cannot be loaded: {error}; pip install 'callsheet[tinker]'") from error
        raise BackendError("the tinker backend needs the tinker SDK: pip install 'callsheet[tinker]'") from None


@attrs.frozen
class Access:
    """Where the server is, and with which key; None: what TINKER_BASE_URL and TINKER_API_KEY say."""

    base_url: str | None = None
    api_key: str | None = attrs.field(default=None, repr=False)

    @property
    def url(self) -> str | None:
        """The server's address where one was given, without a slash at the end; None: the SDK's own default."""
        url = self.base_url or os.environ.get("TINKER_BASE_URL")
        return url.rstrip("/") if url else None

    @property
    def server(self) -> str:
        """The server's name in messages."""
        return f"the server at {self.url}" if self.url else DEFAULT_SERVER

    @property
    def arguments(self) -> dict[str, str]:
        """For the SDK's clients, which read the environment for what is left out."""
        given = {"base_url": self.base_url, "api_key": self.api_key}
        return {name: value for name, value in given.items() if value}


class Sdk:
    """The module, and how its line is spoken to."""

    def __init__(self, module: ModuleType | Any) -> None:
        self.module = module
        self.types = module.types
        twin = getattr(module.ServiceClient, "create_lora_training_client_async", None)
        self.returns_futures = twin is None or hasattr(twin, "__deprecated__")
        """The newer line."""

    def future(self, returned: Any) -> Future[Any]:
        """The concurrent future behind what a method returned."""
        found: Future[Any] = returned if type(returned) is Future else returned.future()
        return found

    def detached(self, ask: Callable[[], Any]) -> Future[Any]:
        """The future behind a call made from an event loop, outside of that loop's context.

        The SDK's own loop would inherit the context, and with it the belief that trio is running there.
        """
        return self.future(contextvars.Context().run(ask))

    def client(self, owner: Any, method: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls a method that gives a client. Does not wait for it."""
        if self.returns_futures:
            return self.future(getattr(owner, method)(*args, **kwargs))
        coroutine = getattr(owner, f"{method}_async")(*args, **kwargs)
        return self.future(owner.holder.run_coroutine_threadsafe(coroutine))

    def connect(
        self, access: Access, *, user_metadata: Mapping[str, str] | None = None, project_id: str | None = None
    ) -> tuple[Any, Any]:
        """The service and its REST client, with a session on the server. Blocks while the SDK makes its first requests."""
        options = access.arguments
        try:
            metadata = dict(user_metadata) if user_metadata else None
            service = self.module.ServiceClient(user_metadata=metadata, project_id=project_id, **options)
            if not self.returns_futures:
                # Both of the older line's connections are made now: made later, in its own loop, they would wait for themselves.
                rest = service.create_rest_client()
                _ = service.holder
            else:
                rest = self.module.RestClient(**options)
        except Exception as error:
            raise as_backend_error(error, f"{access.server} could not be opened") from error
        return service, rest

    def connect_store(self, access: Access) -> Any:
        """A REST client without a session. Blocks while the SDK makes its first requests."""
        try:
            if self.returns_futures:
                return self.module.RestClient(**access.arguments)
            return self.module.ServiceClient(**access.arguments).create_rest_client()
        except Exception as error:
            raise as_backend_error(error, f"{access.server} could not be opened") from error

    def server_models(self, service: Any, rest: Any) -> Future[Any]:
        """Asks which models are served; the answer has `supported_models`."""
        if self.returns_futures:
            return self.future(rest.get_server_capabilities())
        return self.future(service.holder.run_coroutine_threadsafe(service.get_server_capabilities_async()))

    def close(self, service: Any, status: str, seconds: float) -> None:
        """Ends the session, waiting for at most `seconds`. Blocks."""
        if not self.returns_futures:
            service.holder.close()
            return
        finishing = self.future(service.close(status))
        with suppress(Exception):  # a server that is gone cannot be told; the session ends when its heartbeat stops
            finishing.result(seconds)
        finishing.cancel()
