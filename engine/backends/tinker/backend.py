"""The tinker backend: both ports on one model of a server.

    forward, forward_backward, optim_step, snapshot, save, load ──▶ Submissions (one thread) ──▶ the SDK's TrainingClient
    sample, compute_logprobs ─────────────────────────────────────────────────────────────────▶ its SamplingClients

Nothing here waits in the event loop: datums are converted and submitted in a thread, answers come back through `engine.backends.futures`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import attrs

from engine.backends.futures import until_done
from engine.backends.ports import Capabilities, Discarded, Snapshot, Tokenizer
from engine.backends.tinker import states
from engine.backends.tinker.sampling import Sampling, TinkerSnapshot
from engine.backends.tinker.session import Session, Submission, deletions
from engine.backends.tinker.training import Training
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
from engine.storage.discarded import Remote
from engine.training.custom import CustomLoss
from engine.training.losses import LOSSES


@attrs.frozen
class TinkerStatistics:
    """The backend's record so far."""

    requests: int
    """Sampling and scoring requests."""
    in_flight: int
    """Samples asked for and not yet there."""
    retries: int
    """Requests asked again here, after a pause."""
    timeouts: int
    """Requests given up at their deadline, or because the server was out of reach."""
    cancelled: int
    """Requests that nobody waited for any more."""
    rate_limited: int
    """Answers with status 429; the SDK waits and asks again."""
    server_errors: int
    """Answers with a status of 500 or above; likewise."""
    snapshots: int
    """Being served."""
    submitted: int
    """Training work without a result yet."""
    not_deleted: int
    """Things that could not be deleted on the server; they end with their time-to-live."""


class TinkerBackend:
    """Sampling and training on a server of the Tinker API. Made by `engine.backends.tinker.open`."""

    def __init__(
        self,
        session: Session,
        client: object,
        *,
        tokenizer: str | Path,
        max_context: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.capabilities = Capabilities(
            "tinker",
            frozenset(LOSSES),
            max_context,
            session.options.request_deadline,
            time_to_live=session.traits.expires,
            images=session.traits.images,
            clips_gradients=session.traits.clips_gradients,
        )
        self._session = session
        self._tokenizer = tokenizer
        self._training = Training(session, client, max_context, vocab_size)
        self._sampling = Sampling(session, self._training, lambda: self.tokenizer, max_context, vocab_size)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded when first asked for. Raises OSError where it cannot be had."""
        from engine.rendering import load_vocabulary

        return load_vocabulary(self._tokenizer)

    # Training

    @property
    def version(self) -> int:
        """Optimizer steps submitted so far, those before a restored state included."""
        return self._training.version

    def forward(self, data: Sequence[Datum], loss: Loss) -> Submission[ForwardBackwardResult]:
        """Submits a pass without gradients. Raises RequestRejected like `forward_backward`."""
        return self._training.run(data, loss, backward=False)

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Submission[ForwardBackwardResult]:
        """Submits a pass whose gradients are added to those of earlier passes.

        Losses that servers do not have are computed here between two passes (a forward pass more), in order with everything else. Raises RequestRejected,
        naming the datum's index and the field, for a datum that does not fit. Should the pass fail later, nothing more is trained: the server may have
        stepped on part of a gradient, so a run goes on from its last checkpoint.
        """
        return self._training.run(data, loss, backward=True)

    def forward_backward_custom(self, data: Sequence[Datum], loss: CustomLoss) -> Submission[ForwardBackwardResult]:
        """As `forward_backward`, with a loss of your own: a function of the datums and the logprobs of their targets."""
        return self._training.run_custom(data, loss)

    def optim_step(self, params: AdamParams) -> Submission[dict[str, float]]:
        """Submits one AdamW step on the accumulated gradients.

        Gives the server's metrics, and how often it was too busy (`http_rate_limited`) or failed (`http_server_errors`) since the step before.
        Warns with IgnoredSetting, once, where the server does not clip gradients and is asked to.
        """
        return self._training.optim_step(params)

    def restart(self) -> Submission[None]:
        """Submits the start of a new run on the server from the present weights: version 0, an optimizer that remembers nothing."""
        return self._training.restart()

    def save_state(self, directory: Path, *, time_to_live: float | None = None) -> Submission[None]:
        """Submits the saving of weights and optimizer on the server, and of where they lie into the existing, empty `directory`.

        What lies on the server stays when the directory is deleted, unless it has a `time_to_live` (seconds, at least an hour).
        """
        return self._training.save_state(directory, time_to_live)

    def load_state(self, directory: Path) -> Submission[None]:
        """Submits the restoring of what `save_state` saved, into a new run on the server. Raises UnusableState, with nothing changed, where it cannot be used."""
        return self._training.load_state(directory)

    # Sampling

    def snapshot(self) -> Submission[Snapshot]:
        """Submits the freezing of the current weights for sampling."""
        return self._sampling.snapshot()

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions. Cancelling the call cancels the request.

        All samples of a request go in one, with one seed derived from `request.seed`; servers count up from it. `request.priority` has no place in the API.
        Raises RequestRejected, naming the field, for a request that the model cannot serve.
        """
        return await self._sampling.sample(snapshot, request)

    async def compute_logprobs(self, snapshot: Snapshot, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN, and so are an image's."""
        return await self._sampling.compute_logprobs(snapshot, sequence)

    def release(self, snapshot: Snapshot) -> None:
        """Gives up a snapshot; unless a checkpoint holds it, the server deletes it. Releasing twice is a BackendError."""
        self._sampling.release(snapshot)

    def save_snapshot(self, snapshot: Snapshot, directory: Path) -> Submission[None]:
        """Submits the keeping of a snapshot on the server, and of where it lies into the existing, empty `directory`."""
        return self._sampling.save(snapshot, directory)

    def load_snapshot(self, directory: Path) -> Submission[Snapshot]:
        """Submits the serving of what `save_snapshot` kept."""
        return self._sampling.load(directory)

    # What lies on the server

    def elsewhere(self, directory: Path) -> Sequence[Remote]:
        """Where the states and snapshots lie that were saved into a directory, or anywhere below it. Blocks: it reads files."""
        return states.remotes(directory)

    def in_use(self, path: str) -> bool:
        """Whether a live snapshot is of the weights at a path, or they are being saved into a directory at this moment."""
        return self._sampling.in_use(path)

    async def discard(self, paths: Sequence[str]) -> Discarded:
        """Has the server delete what lies at these paths, for good; one after the other, and says what became of each."""
        return await self._session.aside(deletions(self._session.delete, paths), "deleting weights").result()

    # The backend

    @property
    def live_snapshots(self) -> tuple[TinkerSnapshot, ...]:
        """Snapshots handed out and not released, oldest first."""
        return self._sampling.live

    def statistics(self) -> TinkerStatistics:
        """The record so far."""
        session, counts = self._session, self._session.counts
        return TinkerStatistics(
            requests=counts.requests,
            in_flight=self._sampling.in_flight,
            retries=counts.retries,
            timeouts=counts.timeouts,
            cancelled=counts.cancelled,
            rate_limited=session.statuses.rate_limited,
            server_errors=session.statuses.server_errors,
            snapshots=len(self._sampling.live),
            submitted=session.submissions.unfinished,
            not_deleted=counts.not_deleted,
        )

    async def let_go(self) -> None:
        """Releases every snapshot and frees the model, and waits until the server has deleted what no checkpoint holds, as far as it can."""
        for snapshot in self.live_snapshots:
            self._sampling.release(snapshot)
        self._training.let_go()
        for deletion in tuple(self._session.discarding):
            await until_done(deletion)
