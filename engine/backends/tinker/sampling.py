"""Sampling from snapshots on a server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np

from engine.backends.checks import check_input, check_sampling
from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.backends.ports import Snapshot, Tokenizer
from engine.backends.tinker import conversion, states
from engine.backends.tinker.failures import as_backend_error
from engine.backends.tinker.session import Session, Submission, discard, whole_path
from engine.backends.tinker.submissions import RELEASE, Operation
from engine.backends.tinker.training import Training, restored
from engine.backends.values import Completion, Logprobs, ModelInput, SampleRequest
from engine.runtime.offload import offload
from engine.runtime.seeds import derive_seed


@attrs.define(eq=False)
class TinkerSnapshot:
    """Weights on the server, frozen at a policy version."""

    version: int
    path: str
    """Where they lie: tinker://<run>/sampler_weights/<name>."""
    client: Any = attrs.field(repr=False)
    state: str | None = None
    """Path of the training state that a snapshot with a model of its own was made from."""
    model_id: str | None = None
    """That model."""
    kept: bool = False
    """A checkpoint holds it, so releasing does not delete it."""

    @property
    def kept_as(self) -> str:
        """What a checkpoint holds of it."""
        return self.state or self.path


class Sampling:
    """The snapshots of one session, and requests to them."""

    def __init__(
        self,
        session: Session,
        training: Training,
        tokenizer: Callable[[], Tokenizer],
        max_context: int | None,
        vocab_size: int | None,
    ) -> None:
        self._session = session
        self._training = training
        self._tokenizer = tokenizer
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._own_models = session.traits.own_snapshots
        self._live: set[TinkerSnapshot] = set()
        self._being_kept: list[str] = []
        self.in_flight = 0

    @property
    def live(self) -> tuple[TinkerSnapshot, ...]:
        """Snapshots handed out and not released, oldest first."""
        return tuple(sorted(self._live, key=lambda snapshot: snapshot.version))

    # Snapshots

    def snapshot(self) -> Submission[Snapshot]:
        """Submits the freezing of the current weights."""
        return self._session.pending(self._freeze(), "snapshot")

    def _freeze(self) -> Operation[Snapshot]:
        session, training = self._session, self._training
        version = training.version_in_turn
        name = session.options.unique_name("sampler", version)
        lifetime = session.lifetime(session.options.snapshot_ttl)
        if self._own_models:
            answer = session.sdk.future(training.client.save_state(name, **lifetime))
            yield RELEASE
            state = (yield answer).path
            other = yield session.sdk.client(session.service, "create_training_client_from_state", state)
            return (yield from self._of_own_model(other, version, state))
        answer = session.sdk.future(training.client.save_weights_for_sampler(name, **lifetime))
        yield RELEASE
        path = (yield answer).path
        return (yield from self._served(version, path))

    def _of_own_model(self, model: Any, version: int, state: str) -> Generator[Future[Any], Any, TinkerSnapshot]:
        session = self._session
        name = session.options.unique_name("sampler", version)
        lifetime = session.lifetime(session.options.snapshot_ttl)
        path = (yield session.sdk.future(model.save_weights_for_sampler(name, **lifetime))).path
        return (yield from self._served(version, path, state=state, model_id=model.model_id))

    def _served(self, version: int, path: str, **more: Any) -> Generator[Future[Any], Any, TinkerSnapshot]:
        client = yield self._session.sdk.client(self._session.service, "create_sampling_client", path)
        return self._alive(TinkerSnapshot(version, path, client, **more))

    def _alive(self, snapshot: TinkerSnapshot) -> TinkerSnapshot:
        with self._session.lock:
            self._live.add(snapshot)
        return snapshot

    def release(self, snapshot: Snapshot) -> None:
        """Gives up a snapshot, and has the server delete it unless a checkpoint holds it."""
        served = self._of(snapshot)
        with self._session.lock:
            self._live.remove(served)
        stays = served.kept_as if served.kept else None
        paths = [path for path in (served.path, served.state) if path not in (None, stays)]
        discard(self._session, model=served.model_id, paths=paths)

    def save(self, snapshot: Snapshot, directory: Path) -> Submission[None]:
        """Submits the keeping of a snapshot: its weights are on the server already, and shall stay there as long as a checkpoint does."""
        served = self._of(snapshot)
        served.kept = True
        self._being_kept.append(served.kept_as)
        submission = self._session.aside(self._keep(served, directory), "save_snapshot")
        submission.future.add_done_callback(lambda _: self._being_kept.remove(served.kept_as))
        return submission

    def _keep(self, served: TinkerSnapshot, directory: Path) -> Operation[None]:
        session = self._session
        if session.traits.expires and session.options.snapshot_ttl is not None:
            yield session.sdk.future(session.rest.set_checkpoint_ttl_from_tinker_path(whole_path(served.kept_as), None))
        states.write(directory, session.saved("snapshot", served.kept_as, served.version))

    def load(self, directory: Path) -> Submission[Snapshot]:
        """Submits the serving of a snapshot that was saved."""
        return self._session.aside(self._restore(directory), "load_snapshot")

    def _restore(self, directory: Path) -> Operation[Snapshot]:
        session = self._session
        saved = states.read(directory, "snapshot", model=session.model, lora_rank=session.options.lora_rank)
        if self._own_models:
            model = yield from restored(session, "create_training_client_from_state", saved, directory)
            snapshot = yield from self._of_own_model(model, saved.version, saved.path)
        else:
            client = yield from restored(session, "create_sampling_client", saved, directory)
            snapshot = self._alive(TinkerSnapshot(saved.version, saved.path, client))
        snapshot.kept = True
        return snapshot

    def _of(self, snapshot: Snapshot) -> TinkerSnapshot:
        if not isinstance(snapshot, TinkerSnapshot) or snapshot not in self._live:
            version = getattr(snapshot, "version", "unknown")
            raise BackendError(
                f"this snapshot (version {version}) is not live: it was released, or is of another backend"
            )
        return snapshot

    def in_use(self, path: str) -> bool:
        """Whether a live snapshot is of these weights, or a checkpoint that will hold them is being written."""
        with self._session.lock:
            return path in self._being_kept or any(path in (each.path, each.state) for each in self._live)

    # Requests

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions."""
        served = self._of(snapshot)
        self._check(request)
        types = self._session.sdk.types
        prompt = await self._converted(request.prompt, "prompt")
        params = conversion.sdk_sampling(types, request.params, request.seed)
        tokenizer = self._tokenizer() if conversion.cut_here(request.params) else None
        ask = functools.partial(
            served.client.sample, prompt=prompt, num_samples=request.num_samples, sampling_params=params
        )
        self.in_flight += request.num_samples
        try:
            response = await self._answered(ask, f"sample at version {served.version}", request.seed)
        finally:
            self.in_flight -= request.num_samples
        if len(response.sequences) != request.num_samples:
            raise BackendError(
                f"the server sent {len(response.sequences)} completions where {request.num_samples} were asked for"
            )
        return [conversion.completion(sequence, request, served.version, tokenizer) for sequence in response.sequences]

    async def compute_logprobs(self, snapshot: Snapshot, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); NaN at position 0, and at an image's."""
        served = self._of(snapshot)
        check_input("sequence", sequence, vocab_size=self._vocab_size, no_images=self._session.no_images)
        length = sequence.length
        if self._max_context is not None and length > self._max_context:
            raise RequestRejected(f"sequence: {length} tokens; the model's context is {self._max_context}")
        if length == 1:
            return np.array([np.nan], np.float32)
        converted = await self._converted(sequence, "sequence")
        ask = functools.partial(served.client.compute_logprobs, converted)
        values = await self._answered(ask, f"compute_logprobs at version {served.version}", length)
        return conversion.prompt_logprobs(values, sequence)

    def _check(self, request: SampleRequest) -> None:
        check_input("prompt", request.prompt, vocab_size=self._vocab_size, no_images=self._session.no_images)
        check_sampling(request.params)
        length, context = request.prompt.length, self._max_context
        if context is not None and length >= context:
            raise RequestRejected(
                f"prompt: {length} tokens leave no room for an answer in the model's context of {context}"
            )

    async def _converted(self, value: ModelInput, name: str) -> Any:
        types = self._session.sdk.types
        if conversion.holds_files(value):
            return await offload(conversion.sdk_input, types, value, name)
        return conversion.sdk_input(types, value, name)

    async def _answered(self, ask: Callable[[], Any], what: str, seed: int) -> Any:
        """The answer to a request, asked again after a pause where the failure may pass."""
        session = self._session
        session.counts.requests += 1
        for attempt in range(1, session.options.attempts):
            try:
                return await self._once(ask, what)
            except TransientError:
                pause = session.options.backoff * 2 ** (attempt - 1)
                await anyio.sleep(pause * (1 + derive_seed(seed, attempt) / 2**64))
                session.counts.retries += 1
        return await self._once(ask, what)

    async def _once(self, ask: Callable[[], Any], what: str) -> Any:
        session = self._session
        future: Future[Any] | None = None
        try:
            future = session.sdk.detached(ask)
            await session.patience.wait(future, session.options.request_deadline, what)
            answer = future.result()
        except anyio.get_cancelled_exc_class():
            session.counts.cancelled += 1
            raise
        except TransientError:
            session.counts.timeouts += 1
            raise
        except (Exception, CancelledError) as error:
            raise as_backend_error(error, what) from error
        finally:
            if future is not None and not future.done():
                future.cancel()
        session.patience.answers += 1
        return answer
