"""Training on a server: one TrainingClient, and the operations that are submitted to it in order."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.checks import check_datums
from engine.backends.errors import BackendError, IgnoredSetting, RequestRejected, TransientError, UnusableState
from engine.backends.tinker import conversion, states
from engine.backends.tinker.failures import as_backend_error
from engine.backends.tinker.options import wrong_lifetime
from engine.backends.tinker.session import Session, Submission, discard
from engine.backends.tinker.states import SavedState
from engine.backends.tinker.submissions import RELEASE, Operation
from engine.backends.values import AdamParams, Datum, ForwardBackwardResult, Logprobs, Loss
from engine.training.custom import CustomLoss, linearized, named_loss, scoring_datums
from engine.training.losses import LOSSES, evaluate

CROSS_ENTROPY = Loss("cross_entropy")
SERVED: Mapping[str, str] = {
    "cross_entropy": "cross_entropy",
    "importance_sampling": "importance_sampling",
    "ppo": "ppo",
    "dapo": "ppo",
    "cispo": "cispo",
}
"""Losses that servers compute themselves, by their name there. The others are computed here between two passes, with the same gradient (`engine.training.custom`)."""
PAIRED = frozenset({"dpo"})
_HOUR = 3600.0


def check_loss(loss: Loss) -> dict[str, float]:
    """The loss's full parameters. Raises RequestRejected for a name or parameter that does not exist."""
    formula = LOSSES.get(loss.name)
    if formula is None:
        raise RequestRejected(
            f"loss {loss.name!r} is not known to the tinker backend; it has {', '.join(sorted(LOSSES))}"
        )
    for name, value in loss.params.items():
        if name not in formula.params:
            known = ", ".join(formula.params) or "none"
            raise RequestRejected(f"loss {loss.name!r} has no parameter {name!r}; its parameters: {known}")
        if not np.isfinite(value):
            raise RequestRejected(f"loss {loss.name!r}: parameter {name!r} is {value}, not a finite number")
    return {**formula.params, **{name: float(value) for name, value in loss.params.items()}}


class Training:
    """The run on the server."""

    def __init__(self, session: Session, client: Any, max_context: int | None, vocab_size: int | None) -> None:
        self._session = session
        self._client = client
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._restored = 0
        self._submitted = 0
        self.version_in_turn = 0
        """Optimizer steps before the operation whose turn it is; the worker's."""
        self._broken: str | None = None
        self._statuses_told = (0, 0)
        self._unclipped_told = False

    @property
    def client(self) -> Any:
        """The client whose turn it is; the worker's."""
        return self._client

    @property
    def version(self) -> int:
        """Optimizer steps submitted so far, those before a restored state included."""
        return self._restored + self._submitted

    # Passes

    def run(self, data: Sequence[Datum], loss: Loss, *, backward: bool) -> Submission[ForwardBackwardResult]:
        """Submits a pass by a loss's name. Raises RequestRejected for what does not fit."""
        params = check_loss(loss)
        data = tuple(data)
        reads = LOSSES[loss.name].reads
        self._check(data, loss.name, reads)
        what = "forward_backward" if backward else "forward"
        if loss.name in SERVED and not (backward and self._misread(data, loss)):
            return self._submit(self._served(data, loss, reads, params, backward=backward), what, changes=backward)
        return self._submit(self._computed(data, named_loss(loss), backward=backward), what, changes=backward)

    def run_custom(self, data: Sequence[Datum], loss: CustomLoss) -> Submission[ForwardBackwardResult]:
        """Submits a pass with gradients of a loss that is computed here."""
        data = tuple(data)
        self._check(data, "custom", ())
        return self._submit(self._computed(data, loss, backward=True), "forward_backward", changes=True)

    def _check(self, data: Sequence[Datum], loss: str, reads: Sequence[str]) -> None:
        check_datums(
            data,
            loss,
            reads,
            vocab_size=self._vocab_size,
            max_context=self._max_context,
            no_images=self._session.no_images,
            pairs=loss in PAIRED,
        )

    def _misread(self, data: Sequence[Datum], loss: Loss) -> bool:
        """Whether the server would make something else of the weights: a custom loss's gradient comes as cross-entropy with weights of any sign."""
        if self._session.traits.signed_weights or loss.name != CROSS_ENTROPY.name:
            return False
        return any(bool((np.asarray(datum.loss_inputs["weights"]) < 0).any()) for datum in data)

    def _served(
        self, data: Sequence[Datum], loss: Loss, reads: Sequence[str], params: Mapping[str, float], *, backward: bool
    ) -> Operation[ForwardBackwardResult]:
        answer = self._pass(SERVED[loss.name], data, reads, params, backward=backward)
        yield RELEASE
        output = yield answer
        logprobs = conversion.target_logprobs(output.loss_fn_outputs, data)
        return ForwardBackwardResult(evaluate(loss, data, logprobs)[0], logprobs, _metrics(output.metrics))

    def _computed(self, data: Sequence[Datum], loss: CustomLoss, *, backward: bool) -> Operation[ForwardBackwardResult]:
        """Log-probs first, then the loss and its gradient here, then the gradient there, as that of a loss which servers have."""
        output = yield self._pass("cross_entropy", scoring_datums(data), ("weights",), {}, backward=False)
        logprobs = conversion.target_logprobs(output.loss_fn_outputs, data)
        found = loss(data, logprobs)
        metrics = {**_metrics(output.metrics), **found.metrics}
        if backward:
            if self._session.traits.signed_weights:
                surrogate = linearized(data, found.gradients)
                answer = self._pass("cross_entropy", surrogate, ("weights",), {}, backward=True)
            else:
                surrogate = _at_ratio_one(linearized(data, found.gradients), logprobs)
                answer = self._pass("importance_sampling", surrogate, ("logprobs", "advantages"), {}, backward=True)
            yield RELEASE
            output = yield answer
            conversion.target_logprobs(output.loss_fn_outputs, data)  # finite, as many as there must be
        return ForwardBackwardResult(found.loss, logprobs, metrics)

    def _pass(
        self, loss: str, data: Sequence[Datum], reads: Sequence[str], params: Mapping[str, float], *, backward: bool
    ) -> Future[Any]:
        sdk = self._session.sdk
        fields = ("target_tokens", *reads)
        converted = [conversion.sdk_datum(sdk.types, index, datum, fields) for index, datum in enumerate(data)]
        submit = self._client.forward_backward if backward else self._client.forward
        return sdk.future(submit(converted, loss, dict(params) or None))

    # Steps

    def optim_step(self, params: AdamParams) -> Submission[dict[str, float]]:
        """Submits one AdamW step."""
        if params.grad_clip_norm > 0 and not self._session.traits.clips_gradients and not self._unclipped_told:
            self._unclipped_told = True
            warnings.warn(
                f"{self._session.access.server} does not clip gradients: a clipping norm of {params.grad_clip_norm:g} has no effect there",
                IgnoredSetting,
                stacklevel=3,  # whoever asked the backend
            )
        submission = self._submit(self._step(params), "optim_step", changes=True)
        with self._session.lock:
            self._submitted += 1
        return submission

    def _step(self, params: AdamParams) -> Operation[dict[str, float]]:
        session = self._session
        answer = session.sdk.future(self._client.optim_step(conversion.sdk_adam(session.sdk.types, params)))
        self.version_in_turn += 1
        yield RELEASE
        output = yield answer
        counted = (session.statuses.rate_limited, session.statuses.server_errors)
        told, self._statuses_told = self._statuses_told, counted
        return {
            **_metrics(output.metrics),
            "http_rate_limited": float(counted[0] - told[0]),
            "http_server_errors": float(counted[1] - told[1]),
        }

    # States

    def restart(self) -> Submission[None]:
        """Submits the start of a new run from the present weights."""
        submission = self._submit(self._begin_anew(), "restart", changes=True)
        with self._session.lock:
            self._restored = self._submitted = 0
        return submission

    def _begin_anew(self) -> Operation[None]:
        session = self._session
        name = session.options.unique_name("restart", self.version_in_turn)
        saved = yield session.sdk.future(self._client.save_state(name, **session.lifetime(_HOUR)))
        self._replace((yield session.sdk.client(session.service, "create_training_client_from_state", saved.path)))
        self.version_in_turn = 0
        discard(self._session, paths=[saved.path])

    def save_state(self, directory: Path, time_to_live: float | None) -> Submission[None]:
        """Submits the saving of weights and optimizer. Raises RequestRejected for a time to live that the server cannot give."""
        if time_to_live is not None:
            known = self._session.traits.expires
            wrong = (
                wrong_lifetime(time_to_live) if known else "is nothing that this server has: what is saved there stays"
            )
            if wrong:
                raise RequestRejected(f"time_to_live {wrong}")
        return self._submit(self._save(directory, time_to_live), "save_state", changes=False)

    def _save(self, directory: Path, time_to_live: float | None) -> Operation[None]:
        session, version = self._session, self.version_in_turn
        name = session.options.unique_name("state", version)
        answer = session.sdk.future(self._client.save_state(name, **session.lifetime(time_to_live)))
        yield RELEASE
        saved = yield answer
        states.write(directory, session.saved("training state", saved.path, version, time_to_live))

    def load_state(self, directory: Path) -> Submission[None]:
        """Submits the restoring of a saved state, into a new run on the server."""
        with self._session.lock:
            submitted = self._submitted
        return self._session.pending(self._load(directory, submitted), "load_state")

    def _load(self, directory: Path, submitted: int) -> Operation[None]:
        session = self._session
        saved = states.read(directory, "training state", model=session.model, lora_rank=session.options.lora_rank)
        client = yield from restored(session, "create_training_client_from_state_with_optimizer", saved, directory)
        self._replace(client)
        self.version_in_turn = saved.version
        with session.lock:
            self._restored, self._submitted = saved.version, self._submitted - submitted
            self._broken = None

    def _replace(self, client: Any) -> None:
        self.let_go()
        self._client = client

    def let_go(self) -> None:
        """Frees the model on servers that do not do so by themselves."""
        client, session = self._client, self._session

        def forget() -> Future[Any]:
            step = conversion.sdk_adam(session.sdk.types, AdamParams(learning_rate=0.0))
            return session.sdk.future(client.optim_step(step))

        first = None if session.traits.forgets_gradients else forget
        discard(session, model=client.model_id, first=first)

    # The queue

    def _submit(self, operation: Operation[Any], what: str, *, changes: bool) -> Submission[Any]:
        """`changes`: what fails here leaves the weights or gradients in doubt, so nothing more is trained on them."""
        if self._broken is not None:
            operation.close()
            raise BackendError(self._refusal())
        guarded = self._guarded(operation) if changes else operation
        return self._session.pending(guarded, what)

    def _guarded(self, operation: Operation[Any]) -> Operation[Any]:
        if self._broken is not None:
            raise BackendError(self._refusal())
        try:
            return (yield from operation)
        except GeneratorExit:
            raise
        except BaseException as error:
            with self._session.lock:
                self._broken = self._broken or str(as_backend_error(error, "training"))
            raise

    def _refusal(self) -> str:
        return f"the run on the server is in doubt after a failure ({self._broken}): go on from the last checkpoint"


def restored(session: Session, method: str, saved: SavedState, directory: Path) -> Generator[Future[Any], Any, Any]:
    """A client made from what was saved. Raises UnusableState where the server has it no more, TransientError where it may be asked again."""
    try:
        return (yield session.sdk.client(session.service, method, saved.path))
    except GeneratorExit:
        raise
    except Exception as error:
        found = as_backend_error(error, saved.path)
        if isinstance(found, TransientError):
            raise found from error
        ended = f" (it was kept until {saved.expires})" if saved.expires else ""
        raise UnusableState(f"{directory}: the server cannot restore {found}{ended}") from error


def _at_ratio_one(data: Sequence[Datum], logprobs: Sequence[Logprobs]) -> list[Datum]:
    """Cross-entropy datums as importance-sampling ones of the same gradient: at w = 1 that of −w·A is −A·∇log π."""
    return [
        Datum(
            datum.model_input,
            {
                "target_tokens": datum.loss_inputs["target_tokens"],
                "logprobs": logprobs_T,
                "advantages": datum.loss_inputs["weights"],
            },
        )
        for datum, logprobs_T in zip(data, logprobs, strict=True)
    ]


def _metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """A server's metrics, without the names of servers before theirs."""
    return {name.rpartition("/")[2]: float(value) for name, value in (metrics or {}).items()}
