"""Clients of the SDK's shape over the in-memory service, of either line.

0.25   methods that create clients would block: their `*_async` twins are coroutines for the SDK's own loop; `sample` gives a plain concurrent future
0.38   methods that create clients give futures of them, the twins are deprecated; what `sample` gives is a future only in name: `.future()` has it
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NoReturn

import attrs

from engine.backends.tinker.testing import values
from engine.backends.tinker.testing.service import Run, Service, Stored


class APIFuture:
    """A future of the SDK. In an event loop it may be awaited on asyncio only, so what is used of it is `future`."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def future(self) -> Future[Any]:
        """The concurrent future."""
        return self._future

    def result(self, timeout: float | None = None) -> Any:
        """Blocks, once it is there."""
        if not self._future.done():
            raise AssertionError("result() would block the event loop")
        return self._future.result(timeout)

    def __await__(self) -> Any:
        yield self._future
        return self._future.result()


class DeprecatedFuture(Future[Any]):
    """What the newer line's `sample` gives: its methods as a concurrent future warn, and are to be left alone."""

    def __init__(self, future: Future[Any]) -> None:
        super().__init__()
        self._real = future

    def future(self) -> Future[Any]:
        """The concurrent future."""
        return self._real

    def add_done_callback(self, fn: Callable[[Any], Any]) -> NoReturn:  # noqa: ARG002  (of its kind)
        """Deprecated."""
        raise AssertionError("use .future()")

    def cancel(self) -> NoReturn:
        """Deprecated."""
        raise AssertionError("use .future()")


class Holder:
    """What runs the older line's coroutines: the SDK's loop, or here whoever completes what they wait for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def close(self) -> None:
        """Ends the session."""
        self._service.sessions.append("closed")

    def run_coroutine_threadsafe(self, coroutine: Coroutine[Any, Any, Any]) -> APIFuture:
        """Runs a coroutine that waits for futures of this module."""
        result: Future[Any] = Future()

        def go_on(_: object) -> None:
            try:
                waited = coroutine.send(None)
            except StopIteration as end:
                result.set_result(end.value)
            except Exception as error:  # noqa: BLE001  (the caller's)
                result.set_exception(error)
            else:
                waited.add_done_callback(go_on)

        go_on(None)
        return APIFuture(result)


class TrainingClient:
    """A run's client."""

    def __init__(self, service: Service, run: Run) -> None:
        self._service = service
        self._run = run
        self.model_id = run.id

    def _submit(self, call: str, execute: Callable[[], Any]) -> APIFuture:
        return APIFuture(self._service.submit(call, self._run, execute))

    def forward(self, data: list[Any], loss_fn: str, loss_fn_config: dict[str, float] | None = None) -> APIFuture:
        """A pass without gradients."""
        return self._pass("forward", data, loss_fn, loss_fn_config)

    def forward_backward(
        self, data: list[Any], loss_fn: str, loss_fn_config: dict[str, float] | None = None
    ) -> APIFuture:
        """A pass with gradients."""
        return self._pass("forward_backward", data, loss_fn, loss_fn_config)

    def _pass(self, call: str, data: list[Any], loss: str, config: dict[str, float] | None) -> APIFuture:
        if not data:
            raise ValueError("No data provided")

        def execute() -> values.ForwardBackwardOutput:
            found = self._run.weights.run(data, loss, config or {}, backward=call == "forward_backward")
            outputs = [{"logprobs": values.TensorData(logprobs_T)} for logprobs_T in found]
            return values.ForwardBackwardOutput(loss_fn_outputs=outputs, metrics={})

        return self._submit(call, execute)

    def optim_step(self, adam_params: values.AdamParams) -> APIFuture:
        """A step."""
        return self._submit(
            "optim_step",
            lambda: values.OptimStepResponse(metrics={"fake.ai/grad_norm": self._service.step(self._run, adam_params)}),
        )

    def save_state(self, name: str, ttl_seconds: int | None = None) -> APIFuture:
        """Weights and optimizer."""
        return self._submit("save_state", lambda: self._saved("training", name, ttl_seconds))

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None) -> APIFuture:
        """Weights to sample from."""
        return self._submit("save_weights_for_sampler", lambda: self._saved("sampler", name, ttl_seconds))

    def _saved(self, kind: str, name: str, ttl: int | None) -> values.SaveResponse:
        return values.SaveResponse(path=self._service.save(self._run, kind, name, ttl))


class SamplingClient:
    """A snapshot's client."""

    def __init__(self, service: Service, path: str, newer: bool) -> None:
        self._service = service
        self._path = path
        self._newer = newer

    def _submit(self, call: str, execute: Callable[[], Any]) -> Future[Any]:
        future = self._service.submit(call, None, execute)
        return DeprecatedFuture(future) if self._newer else future

    def sample(
        self, prompt: values.ModelInput, num_samples: int, sampling_params: values.SamplingParams
    ) -> Future[Any]:
        """Completions."""
        ids = prompt.ids
        return self._submit("sample", lambda: self._service.sample(self._path, ids, num_samples, sampling_params))

    def compute_logprobs(self, prompt: values.ModelInput) -> Future[Any]:
        """Of a prompt's tokens."""
        ids = prompt.ids
        return self._submit("compute_logprobs", lambda: self._service.prompt_logprobs(self._path, ids))


class RestClient:
    """Checkpoints and capabilities."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def _submit(self, call: str, execute: Callable[[], Any]) -> APIFuture:
        return APIFuture(self._service.submit(call, None, execute))

    def get_server_capabilities(self) -> APIFuture:
        """What is served."""
        model = values.SupportedModel(model_name=self._service.model, max_context_length=self._service.max_context)
        return self._submit("capabilities", lambda: values.Capabilities(supported_models=[model]))

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> APIFuture:
        """A page of all."""
        return self._submit("list", lambda: self._page(lambda _: True, limit, offset))

    def list_training_runs(self, limit: int = 20, offset: int = 0) -> APIFuture:
        """A page of runs."""

        def execute() -> SimpleNamespace:
            runs = list(self._service.runs)[offset : offset + limit]
            return SimpleNamespace(training_runs=[SimpleNamespace(training_run_id=run) for run in runs])

        return self._submit("list_runs", execute)

    def list_checkpoints(self, run: str) -> APIFuture:
        """A run's."""
        return self._submit("list_run", lambda: self._page(lambda stored: stored == run, None, 0))

    def _page(self, wanted: Callable[[str], bool], limit: int | None, offset: int) -> SimpleNamespace:
        found = [(path, stored) for path, stored in self._service.checkpoints.items() if wanted(stored.run.id)]
        page = found[offset:] if limit is None else found[offset : offset + limit]
        return SimpleNamespace(checkpoints=[self._listed(path, stored) for path, stored in page])

    def _listed(self, path: str, stored: Stored) -> SimpleNamespace:
        listed = SimpleNamespace(tinker_path=path, checkpoint_type=stored.kind, time=stored.saved)
        if not self._service.shared_slot:
            listed.size_bytes = stored.weights.logits_V_V.nbytes
            listed.expires_at = None if stored.ttl is None else stored.saved + timedelta(seconds=stored.ttl)
        return listed

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture:
        """Deletes one."""

        def execute() -> None:
            if self._service.checkpoints.pop(tinker_path, None) is None:
                raise values.NotFoundError(f"{tinker_path} does not exist")

        return self._submit("delete", execute)

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> APIFuture:
        """Changes how long one lives."""

        def execute() -> None:
            stored = self._service.checkpoints.get(tinker_path)
            if stored is None:
                raise values.NotFoundError(f"{tinker_path} does not exist")
            self._service.checkpoints[tinker_path] = attrs.evolve(stored, ttl=ttl_seconds)

        return self._submit("set_ttl", execute)
