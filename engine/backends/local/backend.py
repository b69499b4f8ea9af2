"""The local backend: both ports on one model on this machine.

    forward, forward_backward, optim_step, snapshot, save, load --> trainer thread (a queue)  --weights--> Snapshot
    sample, compute_logprobs                                    --> sampler thread (batches)  <------------'

A snapshot is a copy of what training changes (the adapters, or all weights); what it does not change is shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import anyio
import attrs
import torch

from engine.backends.checks import check_input, check_sampling
from engine.backends.errors import BackendError, RequestRejected, UnusableState
from engine.backends.futures import thread_safe_call, wait_for
from engine.backends.local.assembly import Assembly
from engine.backends.local.decoding import Ticket
from engine.backends.local.losses import LOSSES, check_data, check_loss
from engine.backends.local.network import Weights
from engine.backends.local.sampler import SamplerThread
from engine.backends.local.scoring import ScoreTicket, Scoring
from engine.backends.local.states import read, write
from engine.backends.local.threads import Job, WorkQueue
from engine.backends.local.tokenizer import LocalTokenizer
from engine.backends.local.trainer import Pass, Trainer
from engine.backends.ports import Capabilities, Snapshot
from engine.backends.streaming import tell_all
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
from engine.training.custom import CustomLoss, scoring_datums

_TEXT_ONLY = "the local backend reads text only"


class LocalSnapshot:
    """Weights frozen at a policy version."""

    def __init__(self, version: int, weights_P: torch.Tensor) -> None:
        self._version = version
        self.weights_P: torch.Tensor | None = weights_P
        self.for_sampler: Weights | None = None

    @property
    def version(self) -> int:
        """Optimizer steps behind these weights."""
        return self._version


@attrs.frozen
class LocalOptions:
    """What `open` was told, beside the model."""

    name: str
    max_batch: int
    microbatch_tokens: int
    threads: int | None


class LocalBackend:
    """Sampling and training on this machine. Made by `engine.backends.local.open`."""

    def __init__(self, assembly: Assembly, tokenizer: LocalTokenizer, options: LocalOptions) -> None:
        self.tokenizer = tokenizer
        self._assembly = assembly
        self.capabilities = Capabilities(options.name, frozenset(LOSSES), assembly.max_context)
        self._lock = threading.Lock()
        self._submitted = 0
        self._restored = 0
        self._live: set[LocalSnapshot] = set()

        def prepare() -> None:
            if options.threads is not None:
                torch.set_num_threads(options.threads)

        self._queue = WorkQueue("callsheet-trainer", prepare)
        device = assembly.trainable.weights_P.device
        self._trainer = Trainer(
            assembly.trainer, assembly.trainable, options.microbatch_tokens, self._queue.closing.is_set
        )
        self._sampler = SamplerThread(
            max_batch=options.max_batch,
            decode=tokenizer.decode,
            device=device,
            prepare=prepare,
            scoring=Scoring(device, options.microbatch_tokens, assembly.sampler.shares_prefixes),
        )

    # Training

    @property
    def version(self) -> int:
        """Optimizer steps submitted so far, those before a restored state included."""
        return self._restored + self._submitted

    @property
    def forward_path(self) -> str:
        """Which forward pass runs: "llama", or "generic" with the reason."""
        return self._assembly.forward

    def forward(self, data: Sequence[Datum], loss: Loss) -> Job[ForwardBackwardResult]:
        """Submits a pass without gradients. Raises RequestRejected like `forward_backward`."""
        return self._submit_pass(data, loss, backward=False)

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Job[ForwardBackwardResult]:
        """Submits a pass whose gradients are added to those of earlier passes.

        Raises RequestRejected, naming the datum's index and the field, for a datum that does not fit the loss. Should the pass
        fail later, so does the next `optim_step`: no step is taken on part of a gradient.
        """
        return self._submit_pass(data, loss, backward=True)

    def forward_backward_custom(self, data: Sequence[Datum], loss: CustomLoss) -> Job[ForwardBackwardResult]:
        """Submits a pass with a loss of the caller's own, called in the trainer thread (`CustomLossBackend`)."""
        data = tuple(data)
        spec, _ = check_loss(Loss("cross_entropy"))
        check_data(
            scoring_datums(data), Loss("cross_entropy"), spec, self._assembly.vocab_size, self._assembly.max_context
        )
        return self._queue.submit(lambda: self._trainer.run_custom(data, loss))

    def _submit_pass(self, data: Sequence[Datum], loss: Loss, *, backward: bool) -> Job[ForwardBackwardResult]:
        spec, params = check_loss(loss)
        data = tuple(data)
        check_data(data, loss, spec, self._assembly.vocab_size, self._assembly.max_context)
        work = Pass(data, spec, params, backward)
        return self._queue.submit(lambda: self._trainer.run(work))

    def optim_step(self, params: AdamParams) -> Job[dict[str, float]]:
        """Submits one AdamW step on the accumulated gradients. Gives `grad_norm`, before clipping.

        Where the gradient is not finite or a pass before it failed, no step is taken and the result is a BackendError.
        """

        def step() -> dict[str, float]:
            try:
                return self._trainer.optim_step(params)
            except BaseException:
                with self._lock:
                    self._submitted -= 1
                raise

        job = self._queue.submit(step)
        with self._lock:
            self._submitted += 1
        return job

    def snapshot(self) -> Job[Snapshot]:
        """Submits the freezing of the current weights for sampling."""
        return self._queue.submit(lambda: self._remember(self._trainer.version, self._trainer.trainable.copy()))

    def _remember(self, version: int, weights_P: torch.Tensor) -> LocalSnapshot:
        snapshot = LocalSnapshot(version, weights_P)
        layout, network = self._trainer.trainable.layout, self._assembly.sampler
        snapshot.for_sampler = Weights(version, lambda: network.bind(layout.joined(weights_P)))
        with self._lock:
            self._live.add(snapshot)
        return snapshot

    def restart(self) -> Job[None]:
        """Submits the start of a new run from the present weights: version 0, an optimizer that remembers nothing."""
        with self._lock:
            self._restored = self._submitted = 0

        def begin() -> None:
            state = self._trainer.trainable
            state.mean_P.zero_()
            state.square_P.zero_()
            state.steps = 0
            self._trainer.restored(0)

        return self._queue.submit(begin)

    def save_state(self, directory: Path, *, time_to_live: float | None = None) -> Job[None]:
        """Submits the writing of weights and optimizer into the existing, empty `directory`. Gradients are not part of it."""
        if time_to_live is not None:
            raise RequestRejected("time_to_live: the local backend's files stay until they are deleted")

        def save() -> None:
            state = self._trainer.trainable
            named = state.layout.named
            moments = {f"mean/{name}": view for name, view in named(state.mean_P).items()}
            moments |= {f"square/{name}": view for name, view in named(state.square_P).items()}
            files = {"weights": named(state.weights_P), "optimizer": moments}
            details = {**self._assembly.details, "optimizer_steps": state.steps}
            write(directory, "training state", self._assembly.mark, self._trainer.version, details, files)

        return self._queue.submit(save)

    def load_state(self, directory: Path) -> Job[None]:
        """Submits the restoring of what `save_state` wrote. Raises UnusableState, with nothing changed, where it cannot be used."""
        with self._lock:
            submitted = self._submitted

        def load() -> None:
            saved = read(directory, "training state", self._assembly.mark)
            state = self._trainer.trainable
            buffers = {"weights": "", "mean": "mean/", "square": "square/"}
            tensors = {**saved.files.get("weights", {}), **saved.files.get("optimizer", {})}
            missing = [p + name for p in buffers.values() for name in state.layout.shapes if p + name not in tensors]
            if missing or "optimizer_steps" not in saved.details:
                raise UnusableState(
                    f"{directory} is incomplete: it lacks {missing[0] if missing else 'optimizer_steps'}"
                )
            for buffer_P, prefix in ((state.weights_P, ""), (state.mean_P, "mean/"), (state.square_P, "square/")):
                for name, view in state.layout.named(buffer_P).items():
                    view.copy_(tensors[prefix + name])
            state.steps = int(saved.details["optimizer_steps"])
            self._trainer.restored(saved.version)
            with self._lock:
                self._restored, self._submitted = saved.version, self._submitted - submitted

        return self._queue.submit(load)

    # Sampling

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions; cancelling frees their rows at the next decode step.

        Raises RequestRejected, naming the field, for a request that this model cannot serve. A completion that reaches the end of the
        context ends there, with stop reason "length". Only what `request.params.stop` lists ends a completion early: an
        end-of-text token does when it is listed.
        """
        return await self._sample(snapshot, request, None)

    async def sample_streaming(
        self, snapshot: Snapshot, request: SampleRequest, on_token: Callable[[int, int, float], None]
    ) -> Sequence[Completion]:
        """Like `sample`; `on_token(index, token, logprob)` is called in this event loop as tokens are drawn."""
        call = thread_safe_call()
        told = [0] * request.num_samples

        def tell(index: int, token: int, logprob: float) -> None:
            if told[index] >= 0:
                told[index] += 1
                on_token(index, token, logprob)

        try:
            completions = await self._sample(
                snapshot, request, lambda index, token, logprob: call(lambda: tell(index, token, logprob))
            )
        except BaseException:
            told[:] = [-1] * len(told)  # calls on their way find that whoever wanted them has left
            raise
        # The last tokens' calls may still be on their way to the loop: what they would tell is told now, and they find nothing left to do.
        late, told[:] = list(told), [-1] * len(told)
        tell_all(completions, on_token, late)
        return completions

    async def _sample(
        self, snapshot: Snapshot, request: SampleRequest, on_token: Callable[[int, int, float], None] | None
    ) -> Sequence[Completion]:
        weights = self._weights(snapshot)
        check_input("prompt", request.prompt, vocab_size=self._assembly.vocab_size, no_images=_TEXT_ONLY)
        check_sampling(request.params)
        length, context = request.prompt.length, self._assembly.max_context
        if context is not None and length >= context:
            raise RequestRejected(
                f"prompt: {length} tokens leave no room for an answer in the model's context of {context}"
            )
        room = request.params.max_tokens if context is None else context - length
        ticket = Ticket(request, weights, room, Future(), on_token)
        self._sampler.post(ticket)
        try:
            return await wait_for(ticket.future)
        except anyio.get_cancelled_exc_class():
            self._sampler.cancel(ticket)
            raise

    async def compute_logprobs(self, snapshot: Snapshot, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN. Sequences asked for at once are computed together."""
        weights = self._weights(snapshot)
        check_input("sequence", sequence, vocab_size=self._assembly.vocab_size, no_images=_TEXT_ONLY)
        tokens_T = sequence.tokens
        context = self._assembly.max_context
        if context is not None and len(tokens_T) > context:
            raise RequestRejected(f"sequence: {len(tokens_T)} tokens; the model's context is {context}")
        future: Future[Logprobs] = Future()
        self._sampler.post(ScoreTicket(tokens_T, weights, future))
        try:
            return await wait_for(future)
        except anyio.get_cancelled_exc_class():
            future.cancel()
            raise

    def release(self, snapshot: Snapshot) -> None:
        """Gives up a snapshot; requests under way finish, then its weights are freed. Releasing twice raises BackendError."""
        with self._lock:
            if not isinstance(snapshot, LocalSnapshot) or snapshot not in self._live:
                raise BackendError(
                    f"this snapshot (version {snapshot.version}) is not live: it was released before, or is another's"
                )
            self._live.remove(snapshot)
        snapshot.weights_P = snapshot.for_sampler = None

    def save_snapshot(self, snapshot: Snapshot, directory: Path) -> Job[None]:
        """Submits the writing of a snapshot into the existing, empty `directory`."""
        self._weights(snapshot)
        weights_P = snapshot.weights_P if isinstance(snapshot, LocalSnapshot) else None
        if weights_P is None:
            raise BackendError("this snapshot was released")
        layout, assembly, version = self._trainer.trainable.layout, self._assembly, snapshot.version
        files = {"weights": layout.named(weights_P)}
        return self._queue.submit(lambda: write(directory, "snapshot", assembly.mark, version, assembly.details, files))

    def load_snapshot(self, directory: Path) -> Job[Snapshot]:
        """Submits the restoring of what `save_snapshot` wrote. Raises UnusableState where it cannot be used."""

        def load() -> Snapshot:
            saved = read(directory, "snapshot", self._assembly.mark)
            state = self._trainer.trainable
            tensors = saved.files.get("weights", {})
            if missing := [name for name in state.layout.shapes if name not in tensors]:
                raise UnusableState(f"{directory} is incomplete: it lacks {missing[0]}")
            like_P = state.copy()
            return self._remember(saved.version, state.layout.pack(tensors, like_P.dtype, like_P.device))

        return self._queue.submit(load)

    def statistics(self) -> dict[str, int]:
        """What is held right now: `rows` being decoded, requests `waiting`, `batches`, and live `snapshots`."""
        return {**self._sampler.statistics(), "snapshots": len(self._live)}

    def close(self) -> None:
        """Ends both threads after the step in hand. Blocks: `open` calls it in a thread."""
        self._sampler.close()
        self._queue.close()
        self._live.clear()

    def _weights(self, snapshot: Snapshot) -> Weights:
        weights = snapshot.for_sampler if isinstance(snapshot, LocalSnapshot) and snapshot in self._live else None
        if weights is None:
            raise BackendError(
                f"this snapshot (version {snapshot.version}) is not live: it was released, or is of another backend"
            )
        return weights
