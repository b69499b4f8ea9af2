"""A module of the SDK's shape: its service client in either line, its values and its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from engine.backends.tinker.testing import values
from engine.backends.tinker.testing.client import APIFuture, Holder, RestClient, SamplingClient, TrainingClient
from engine.backends.tinker.testing.service import Run, Service

_TWIN = "use the method without _async"


class ServiceClient:
    """What both lines' entry points do."""

    service: Service
    newer: bool

    def __init__(
        self,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self.given = (user_metadata, project_id, base_url)
        self.service.check_key(api_key)

    def _begun(self, call: str, begin: Callable[[], Run]) -> APIFuture:
        return APIFuture(self.service.submit(call, None, lambda: TrainingClient(self.service, begin())))

    def _lora(self, base_model: str, rank: int, given: Mapping[str, Any]) -> APIFuture:
        def begin() -> Run:
            if base_model != self.service.model:
                raise values.BadRequestError(f"model {base_model} is not served")
            run = self.service.begin(rank)
            run.layers = {name: value for name, value in given.items() if name.startswith("train_")}
            return run

        return self._begun("create_lora_training_client", begin)

    def _from_state(self, path: str, *, optimizer: bool) -> APIFuture:
        call = "create_training_client_from_state" + ("_with_optimizer" if optimizer else "")
        return self._begun(call, lambda: self.service.begin(0, path, optimizer=optimizer))

    def _sampler(self, path: str) -> APIFuture:
        def execute() -> SamplingClient:
            self.service.stored(path, "sampler")
            return SamplingClient(self.service, path, self.newer)

        return APIFuture(self.service.submit("create_sampling_client", None, execute))


class NewerServiceClient(ServiceClient):
    """0.38's."""

    newer = True

    def create_lora_training_client(self, base_model: str, rank: int = 32, **given: Any) -> APIFuture:
        """A new run."""
        return self._lora(base_model, rank, given)

    async def create_lora_training_client_async(self, *_: Any, **__: Any) -> Any:
        """Deprecated, and marked so as `typing_extensions.deprecated` does."""
        raise AssertionError(_TWIN)

    create_lora_training_client_async.__deprecated__ = _TWIN  # type: ignore[attr-defined]

    def create_training_client_from_state(self, path: str) -> APIFuture:
        """A new run from a checkpoint's weights."""
        return self._from_state(path, optimizer=False)

    def create_training_client_from_state_with_optimizer(self, path: str) -> APIFuture:
        """And its optimizer."""
        return self._from_state(path, optimizer=True)

    def create_sampling_client(self, model_path: str) -> APIFuture:
        """A snapshot's client."""
        return self._sampler(model_path)

    def close(self, status: str) -> APIFuture:
        """Ends the session."""
        self.service.sessions.append(status)
        done: Future[None] = Future()
        done.set_result(None)
        return APIFuture(done)


class OlderServiceClient(ServiceClient):
    """0.25's. Its blocking methods are missing: nobody may call them here."""

    newer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holder = Holder(self.service)

    async def create_lora_training_client_async(self, base_model: str, rank: int = 32, **given: Any) -> Any:
        """A new run."""
        return await self._lora(base_model, rank, given)

    async def create_training_client_from_state_async(self, path: str) -> Any:
        """A new run from a checkpoint's weights."""
        return await self._from_state(path, optimizer=False)

    async def create_training_client_from_state_with_optimizer_async(self, path: str) -> Any:
        """And its optimizer."""
        return await self._from_state(path, optimizer=True)

    async def create_sampling_client_async(self, model_path: str) -> Any:
        """A snapshot's client."""
        return await self._sampler(model_path)

    async def get_server_capabilities_async(self) -> Any:
        """What is served."""
        return await RestClient(self.service).get_server_capabilities()

    def create_rest_client(self) -> RestClient:
        """Checkpoints."""
        return RestClient(self.service)


def sdk_module(service: Service, *, newer: bool) -> Any:
    """The module, on a service."""
    base = NewerServiceClient if newer else OlderServiceClient
    content: dict[str, Any] = {name: getattr(values, name) for name in values.__all__}
    content["ServiceClient"] = type("ServiceClient", (base,), {"service": service})
    if newer:

        def rest(base_url: str | None = None, api_key: str | None = None) -> RestClient:  # noqa: ARG001  (the SDK's)
            service.check_key(api_key)
            return RestClient(service)

        content["RestClient"] = rest
    return SimpleNamespace(types=SimpleNamespace(**content), **content)
