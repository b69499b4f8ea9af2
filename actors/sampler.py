"""The sampler: owns the serving policy versions, bounds concurrency, retries, and knows how busy it is.

It is called, not sent to: a hop over a channel costs more than a cheap sample does. Its order is (priority, arrival).
"""

from __future__ import annotations

import heapq
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio
import attrs

from actors.retries import SamplerSettings, SamplingFailed, ask_again
from engine.backends.errors import BackendError, TransientError
from engine.backends.ports import SamplingBackend, Snapshot
from engine.backends.values import Completion, Logprobs, ModelInput, SampleRequest

__all__ = ["FollowingPolicy", "Sampler", "SamplerSettings", "SamplerStatistics", "SamplingFailed", "ServedPolicy"]


@attrs.frozen
class SamplerStatistics:
    """The sampler's record so far."""

    requests: int
    completions: int
    tokens: int
    retries: int
    in_flight: int
    """Samples asked for and not yet there."""
    peak_in_flight: int
    busy: float
    """Seconds with at least one sample in flight."""


@attrs.define
class _Served:
    snapshot: Snapshot
    users: int = 0
    """Groups pinned to it, evaluations of it, and requests under way."""


class Sampler:
    """Serves policy versions. `publish` a snapshot, then ask through a `ServedPolicy`."""

    def __init__(self, backend: SamplingBackend, settings: SamplerSettings | None = None) -> None:
        self.backend = backend
        self.settings = settings or SamplerSettings()
        self._served: dict[int, _Served] = {}
        self._newest = -1
        self._slots = _Slots(self.settings.slots) if self.settings.slots is not None else None
        self._requests = self._completions = self._tokens = self._retries = 0
        self._in_flight = self._peak = 0
        self._busy = 0.0
        self._busy_since = 0.0
        self._deadline = self.settings.deadline or backend.capabilities.request_deadline

    # --- versions

    @property
    def newest(self) -> int:
        """The newest version published; -1 before the first."""
        return self._newest

    def publish(self, snapshot: Snapshot) -> None:
        """Serves a newer version from now on; older ones live as long as somebody uses them."""
        version = snapshot.version
        if version in self._served:
            raise ValueError(f"version {version} is served already")
        previous, self._newest = self._newest, max(self._newest, version)
        self._served[version] = _Served(snapshot)
        if previous != self._newest:
            self._release_unused(previous)

    def pin(self, version: int) -> None:
        """Keeps a version alive until as many `unpin`."""
        self._get(version).users += 1

    def unpin(self, version: int) -> None:
        """Gives up one use of a version."""
        self._get(version).users -= 1
        self._release_unused(version)

    def in_use(self) -> dict[int, Snapshot]:
        """The versions that somebody uses, by version."""
        return {version: served.snapshot for version, served in sorted(self._served.items()) if served.users}

    def close(self) -> None:
        """Releases every version."""
        for served in self._served.values():
            self.backend.release(served.snapshot)
        self._served.clear()

    def _get(self, version: int) -> _Served:
        served = self._served.get(version)
        if served is None:
            raise BackendError(f"version {version} is not served: it was never published, or released already")
        return served

    def _release_unused(self, version: int) -> None:
        served = self._served.get(version)
        if served is not None and not served.users and version != self._newest:
            del self._served[version]
            self.backend.release(served.snapshot)

    # --- requests

    async def sample(self, request: SampleRequest, version: int) -> Sequence[Completion]:
        """The completions of a request, at a version that is served.

        Raises SamplingFailed after the last attempt, and at once what trying again cannot mend.
        """
        samples = request.num_samples
        served = self._get(version)
        served.users += 1  # while it waits for a slot, too
        try:
            if self._slots is None:
                completions = await self._ask(served.snapshot, request)
            else:
                await self._slots.acquire(samples, request.priority)
                try:
                    completions = await self._ask(served.snapshot, request)
                finally:
                    self._slots.release(samples)
        finally:
            served.users -= 1
            if not served.users:
                self._release_unused(version)
        if len(completions) != samples:
            raise BackendError(f"the backend gave {len(completions)} completions where {samples} were asked for")
        self._requests += 1
        self._completions += samples
        for completion in completions:
            self._tokens += len(completion.tokens)
        return completions

    async def _ask(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        samples = request.num_samples
        if not self._in_flight:
            self._busy_since = anyio.current_time()
        self._in_flight += samples
        self._peak = max(self._peak, self._in_flight)
        try:
            if self._deadline is None:
                return await self.backend.sample(snapshot, request)
            return await self._within_deadline(snapshot, request, self._deadline)
        except TransientError as error:
            return await ask_again(
                lambda: self.backend.sample(snapshot, request),
                error,
                self.settings,
                self._deadline,
                request.seed,
                self._note_retry,
            )
        finally:
            self._in_flight -= samples
            if not self._in_flight:
                self._busy += anyio.current_time() - self._busy_since

    def _note_retry(self) -> None:
        self._retries += 1

    async def _within_deadline(
        self, snapshot: Snapshot, request: SampleRequest, deadline: float
    ) -> Sequence[Completion]:
        with anyio.move_on_after(deadline):
            return await self.backend.sample(snapshot, request)
        raise TransientError(f"no answer within the deadline of {deadline:g} s")

    async def compute_logprobs(self, sequence: ModelInput, version: int) -> Logprobs:
        """Log-probability of every token of a sequence given those before it, shape (T,), under a served version. Tried once."""
        return await self.backend.compute_logprobs(self._get(version).snapshot, sequence)

    def statistics(self) -> SamplerStatistics:
        """The record so far."""
        busy = self._busy + (anyio.current_time() - self._busy_since if self._in_flight else 0.0)
        return SamplerStatistics(
            requests=self._requests,
            completions=self._completions,
            tokens=self._tokens,
            retries=self._retries,
            in_flight=self._in_flight,
            peak_in_flight=self._peak,
            busy=busy,
        )


class ServedPolicy:
    """The `Policy` that envs see: the sampler at one version, which its maker keeps pinned."""

    __slots__ = ("_sampler", "_version")

    def __init__(self, sampler: Sampler, version: int) -> None:
        self._sampler = sampler
        self._version = version

    @property
    def max_context(self) -> int | None:
        """Longest sequence the model takes, prompt and completion together; None: unknown."""
        return self._sampler.backend.capabilities.max_context

    def sample(self, request: SampleRequest) -> Coroutine[Any, Any, Sequence[Completion]]:
        """See `Sampler.sample`."""
        return self._sampler.sample(request, self._version)

    def compute_logprobs(self, sequence: ModelInput) -> Coroutine[Any, Any, Logprobs]:
        """See `Sampler.compute_logprobs`."""
        return self._sampler.compute_logprobs(sequence, self._version)

    def close(self) -> None:
        """Nothing to give up: the pin is its maker's."""


class FollowingPolicy:
    """A policy whose every request is answered by the version that was newest when it was first made.

    `asked` remembers that version by the request's seed. A resumed run that plays a group again therefore asks the same version for the same request;
    the versions asked stay served until `close`.
    """

    __slots__ = ("_asked", "_pinned", "_sampler")

    def __init__(self, sampler: Sampler, asked: dict[int, int]) -> None:
        """The versions in `asked` are pinned already, each once."""
        self._sampler = sampler
        self._asked = asked
        self._pinned = set(asked.values())

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        """See `Sampler.sample`."""
        version = self._asked.get(request.seed)
        if version is None:
            version = self._asked[request.seed] = self._sampler.newest
            if version not in self._pinned:
                self._pinned.add(version)
                self._sampler.pin(version)
        return await self._sampler.sample(request, version)

    def close(self) -> None:
        """Gives up the versions that were asked."""
        for version in self._pinned:
            self._sampler.unpin(version)
        self._pinned.clear()


class _Slots:
    """A counting semaphore whose waiters are served by (priority, arrival), the first of them never overtaken by a smaller one."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._arrivals = 0
        self._waiting: list[tuple[float, int, int, anyio.Event]] = []

    async def acquire(self, wanted: int, priority: float) -> None:
        wanted = min(wanted, self._total)
        if not self._waiting and wanted <= self._free:
            self._free -= wanted
            return
        self._arrivals += 1
        waiter = (priority, self._arrivals, wanted, anyio.Event())
        heapq.heappush(self._waiting, waiter)
        try:
            await waiter[3].wait()
        except BaseException:
            if waiter[3].is_set():  # granted and cancelled at once
                self._free += wanted
            else:
                self._waiting.remove(waiter)
                heapq.heapify(self._waiting)
            self._grant()
            raise

    def release(self, taken: int) -> None:
        self._free += min(taken, self._total)
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][2] <= self._free:
            _, _, wanted, event = heapq.heappop(self._waiting)
            self._free -= wanted
            event.set()
