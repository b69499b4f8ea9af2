"""`SimulatedBackend`: both ports, made of a sampling queue, a serial trainer, injected failures and a log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import attrs

from engine.backends.errors import RequestRejected, UnusableState
from engine.backends.ports import Capabilities, Snapshot
from engine.backends.simulated import losses, records, state
from engine.backends.simulated.faults import Call, Failing, Failures, Injector
from engine.backends.simulated.memory import Memory
from engine.backends.simulated.model import Sampler, SamplerModel, TokenModel, prompt_checksum
from engine.backends.simulated.records import RequestLog, ScoreEntry, TrainingEntry
from engine.backends.simulated.server import SlotServer
from engine.backends.simulated.trainer import Submitted, Timeline, TrainerModel
from engine.backends.values import (
    AdamParams,
    Completion,
    Datum,
    ForwardBackwardResult,
    Logprobs,
    Loss,
    ModelInput,
    SampleRequest,
)

T = TypeVar("T")


@attrs.frozen(eq=False)
class SimulatedSnapshot:
    """Simulated weights, frozen."""

    version: int
    weights: str
    """Digest of the training history behind them."""
    tokens: TokenModel = attrs.field(repr=False)


class SimulatedBackend:
    """A model without weights: completions and log-probs are functions of seeds, time passes on anyio's clock.

    It starts no task and no thread. Given the same calls in the same order it gives the same results at the same times.

    `slots`: samples that decode at once (None: no limit). `record`: keep `log`, and save the server's timing with the state, so that
    a resumed run finds its requests as far as they had come when the state was saved. `track_weights`: keep a digest of all training;
    needed for `policy_dependent` models, a few microseconds a datum.
    """

    def __init__(
        self,
        sampler: SamplerModel | None = None,
        trainer: TrainerModel | None = None,
        *,
        seed: int = 0,
        slots: int | None = None,
        failures: Failures | None = None,
        record: bool = False,
        track_weights: bool = True,
        max_context: int | None = None,
    ) -> None:
        self._model = sampler or SamplerModel()
        self._costs = trainer or TrainerModel()
        if self._model.policy_dependent and not track_weights:
            raise ValueError("policy_dependent needs track_weights: the digest is what the tokens depend on")
        self._seed = seed
        self._sampler = Sampler(self._model, seed)
        self._server = SlotServer(slots)
        self._timeline = Timeline()
        self._faults = Injector(failures) if failures else None
        self._track = track_weights or record
        self._max_context = max_context
        self._version = 0
        self._weights = records.NO_WEIGHTS
        self._gradient = 0
        self._tokens = self._token_model()
        self._live: set[SimulatedSnapshot] = set()
        self._memory = Memory(self._server, self._timeline) if record else None
        self.log = RequestLog() if record else None
        self.requests_in_flight = 0
        self._plain = self.log is None and self._faults is None and not self._model.timed
        self.capabilities = Capabilities(
            "simulated", frozenset(losses.FIELDS), max_context, time_to_live=True, images=True
        )

    @property
    def version(self) -> int:
        """Optimizer steps submitted so far."""
        return self._version

    @property
    def live_snapshots(self) -> tuple[SimulatedSnapshot, ...]:
        """Snapshots handed out and not released, oldest first."""
        return tuple(sorted(self._live, key=lambda snapshot: snapshot.version))

    @property
    def sampler_busy_seconds(self) -> float:
        """Slot seconds given to samples so far."""
        return self._server.busy_seconds

    @property
    def trainer_busy_seconds(self) -> float:
        """Seconds of work the trainer was given so far."""
        return self._timeline.busy_seconds

    @property
    def trainer_free_at(self) -> float:
        """When all that was submitted to the trainer is done, on anyio's clock."""
        return self._timeline.busy_until

    # Sampling

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions; the longest one's time, and the queue's, must pass first."""
        served = self._served(snapshot)
        if self._memory is not None:
            self._memory.go_on()
        self.requests_in_flight += 1
        try:
            if self._plain:
                if self._max_context is not None:
                    self._check_context(request.prompt)
                completions, _ = self._sampler.draw(served.tokens, request, served.version)
                await anyio.lowlevel.checkpoint()
                return completions
            return await self._sample(served, request)
        finally:
            self.requests_in_flight -= 1

    async def _sample(self, served: SimulatedSnapshot, request: SampleRequest) -> Sequence[Completion]:
        self._check_context(request.prompt)
        prompt = ""
        if self.log is not None:
            prompt = records.prompt_digest(request.prompt)
            self.log.add_sample(request, prompt, served.version, served.weights, anyio.current_time())
        if self._faults is not None:
            await _fail(self._faults.next("sample", prompt_checksum(request.prompt) << 64 ^ request.seed))
        completions, seconds = self._sampler.draw(served.tokens, request, served.version)
        if self._memory is not None:
            key = f"{request.seed}:{served.version}:{request.num_samples}:{prompt}"
            job = self._memory.job(key, seconds or [0.0], request.priority)
        elif seconds:
            job = self._server.admit(seconds, request.priority, anyio.current_time())
        else:
            await anyio.lowlevel.checkpoint()
            return completions
        await self._server.wait(job)
        return completions

    async def compute_logprobs(self, snapshot: Snapshot, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token, shape (T,); position 0 is NaN. Takes its time in a slot, where the model has one for it."""
        served = self._served(snapshot)
        self._check_context(sequence)
        if self._memory is not None:
            self._memory.go_on()
        digest = ""
        if self.log is not None:
            digest = records.prompt_digest(sequence)
            self.log.scoring.append(ScoreEntry(digest, served.version, served.weights, anyio.current_time()))
        if self._faults is not None:
            await _fail(self._faults.next("compute_logprobs"))
        self.requests_in_flight += 1
        try:
            await self._work_on_scores(served, sequence, digest)
        finally:
            self.requests_in_flight -= 1
        logprobs_T = served.tokens.logprobs(sequence.tokens)
        logprobs_T[:1] = float("nan")
        return logprobs_T

    async def _work_on_scores(self, served: SimulatedSnapshot, sequence: ModelInput, digest: str) -> None:
        seconds = [self._sampler.scoring_seconds(sequence)]
        if not seconds[0]:
            await anyio.lowlevel.checkpoint()
        elif self._memory is not None:
            await self._server.wait(self._memory.job(f"score:{served.version}:{digest}", seconds, 0.0))
        else:
            await self._server.wait(self._server.admit(seconds, 0.0, anyio.current_time()))

    def release(self, snapshot: Snapshot) -> None:
        """Gives up a snapshot. Raises RequestRejected when it is not, or no longer, alive."""
        self._live.remove(self._served(snapshot))

    def save_snapshot(self, snapshot: Snapshot, directory: Path) -> Submitted[None]:
        """Writes the snapshot's version and digest."""
        served = self._served(snapshot)
        content = {**self._identity(), "version": served.version, "weights": served.weights}
        return self._submit("save_snapshot", self._costs.save, lambda: state.write(directory, "snapshot", content))

    def load_snapshot(self, directory: Path) -> Submitted[Snapshot]:
        """Restores what `save_snapshot` wrote."""

        def read() -> SimulatedSnapshot:
            content = self._read(directory, "snapshot")
            weights = content["weights"]
            return SimulatedSnapshot(content["version"], weights, self._token_model(weights))

        return self._submit("load_snapshot", self._costs.load, read, on_delivery=self._live.add)

    # Training

    def forward(self, data: Sequence[Datum], loss: Loss) -> Submitted[ForwardBackwardResult]:
        """A pass without gradients."""
        losses.check(data, loss, self._max_context)
        seconds = self._costs.passing(data) * self._costs.forward_share
        return self._submit("forward", seconds, lambda: losses.forward(self._tokens, data, loss), data=data, loss=loss)

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Submitted[ForwardBackwardResult]:
        """A pass with gradients, which here are digests that add up. Raises RequestRejected for a datum that does not fit."""
        losses.check(data, loss, self._max_context)
        if self._memory is not None:
            self._memory.go_on()

        def run() -> ForwardBackwardResult:
            if self._track:
                self._gradient = (self._gradient + records.gradient_digest(data, loss)) & (1 << 64) - 1
            return losses.forward(self._tokens, data, loss)

        return self._submit("forward_backward", self._costs.passing(data), run, data=data, loss=loss)

    def optim_step(self, params: AdamParams) -> Submitted[dict[str, float]]:
        """One step: the next version. A step that is made to fail does not count."""

        def run() -> dict[str, float]:
            metrics = {"grad_norm": self._gradient / 2.0**64}
            if self._track:
                self._weights = records.stepped(self._weights, self._gradient, params)
            self._gradient = 0
            self._version += 1
            if self._model.policy_dependent:
                self._tokens = self._token_model(self._weights)
            return metrics

        return self._submit("optim_step", self._costs.optim_step, run, adam=params)

    def snapshot(self) -> Submitted[Snapshot]:
        """Freezes the current version. Alive from when its result is delivered."""
        return self._submit(
            "snapshot",
            self._costs.snapshot,
            lambda: SimulatedSnapshot(self._version, self._weights, self._tokens),
            on_delivery=self._live.add,
        )

    def restart(self) -> Submitted[None]:
        """Version 0 again, from the weights as they are."""

        def begin() -> None:
            self._version = self._gradient = 0

        return self._submit("restart", 0.0, begin)

    def save_state(self, directory: Path, *, time_to_live: float | None = None) -> Submitted[None]:
        """Writes version, digest and, when recording, how far every request and the trainer have come at this moment."""

        def write() -> None:
            timing = self._memory.saved() if self._memory is not None else None
            content = {**self._identity(), "version": self._version, "weights": self._weights, "timing": timing}
            if time_to_live is not None:
                content["expires"] = anyio.current_time() + time_to_live
            state.write(directory, "state", content)

        return self._submit("save_state", self._costs.save, write)

    def load_state(self, directory: Path) -> Submitted[None]:
        """Restores what `save_state` wrote. Accumulated gradients are dropped.

        On a backend that serves nothing yet, a timing that was saved is restored too: requests made again are as far as they were. The server
        stands still until the first request or pass, so that what else a resuming run loads or prepares takes none of its time.
        """

        def read() -> None:
            content = self._read(directory, "state")
            if content.get("expires", math.inf) < anyio.current_time():
                raise UnusableState(f"{directory}: its time to live is over")
            self._version, self._weights = content["version"], content["weights"]
            self._gradient = 0
            self._tokens = self._token_model(self._weights)
            if content["timing"] is not None and self._memory is not None:
                self._memory.suspend(content["timing"])

        return self._submit("load_state", self._costs.load, read)

    def _submit(
        self,
        call: Call,
        seconds: float,
        run: Callable[[], Any],
        *,
        data: Sequence[Datum] = (),
        loss: Loss | None = None,
        adam: AdamParams | None = None,
        on_delivery: Callable[[Any], None] | None = None,
    ) -> Submitted[Any]:
        failing = self._faults.next(call) if self._faults is not None else None
        if failing is not None and failing.at_submission and failing.error is not None:
            raise failing.error
        submitted, began, finish = self._timeline.submit(seconds)
        if self.log is not None:
            digests = tuple(records.datum_digest(datum) for datum in data)
            name, params = (loss.name, dict(loss.params)) if loss is not None else ("", {})
            times = (submitted, began, finish)
            self.log.training.append(TrainingEntry(call, self._version, name, params, digests, adam, *times))
        if failing is not None:
            return Submitted(finish, error=failing.error, hangs=failing.error is None)
        # The outcome depends on what was submitted before and on nothing later, so it can be had now; only its time is to come.
        try:
            value = run()
        except (UnusableState, OSError) as error:
            return Submitted(finish, error=error)
        return Submitted(finish, value, on_delivery=on_delivery)

    # State

    def _token_model(self, weights: str = records.NO_WEIGHTS) -> TokenModel:
        if self._model.policy_dependent:
            return TokenModel(self._model.vocabulary, self._seed, weights)
        return getattr(self, "_tokens", None) or TokenModel(self._model.vocabulary, self._seed, None)

    def _identity(self) -> dict[str, Any]:
        return {"seed": self._seed, "vocabulary": list(self._model.vocabulary)}

    def _read(self, directory: Path, kind: str) -> dict[str, Any]:
        content = state.read(directory, kind)
        for name, value in self._identity().items():
            if content[name] != value:
                raise UnusableState(
                    f"{directory}: of another simulated model: its {name} is {content[name]}, not {value}"
                )
        return content

    def _served(self, snapshot: Snapshot) -> SimulatedSnapshot:
        if snapshot not in self._live:
            version = getattr(snapshot, "version", "unknown")
            raise RequestRejected(
                f"snapshot of version {version} is not served: released already, or of another backend"
            )
        return snapshot

    def _check_context(self, prompt: ModelInput) -> None:
        if self._max_context is not None and prompt.length >= self._max_context:
            raise RequestRejected(
                f"prompt: {prompt.length} tokens leave no room in the model's context of {self._max_context}"
            )


async def _fail(failing: Failing | None) -> None:
    if failing is None:
        return
    if failing.error is None:
        await anyio.sleep_forever()
        return
    await anyio.sleep(failing.after)
    raise failing.error
