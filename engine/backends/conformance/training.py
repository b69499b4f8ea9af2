"""Promises of the training port, and of saved states."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np

from engine.backends.conformance.subject import CROSS_ENTROPY, Subject, close, policy, require, snapshot_of, step
from engine.backends.errors import BackendError, IgnoredSetting, RequestRejected, UnusableState
from engine.backends.ports import Backend, SamplingBackend, TrainingBackend
from engine.backends.values import Datum, Logprobs, Loss

_FIELDS = {
    "cross_entropy": ("target_tokens", "weights"),
    "importance_sampling": ("target_tokens", "logprobs", "advantages"),
    "ppo": ("target_tokens", "logprobs", "advantages"),
    "cispo": ("target_tokens", "logprobs", "advantages"),
}


@contextmanager
def _directories(count: int) -> Iterator[list[Path]]:
    with TemporaryDirectory(prefix="conformance-") as name:
        paths = [Path(name) / str(index) for index in range(count)]
        for path in paths:
            path.mkdir()
        yield paths


async def backend_has_both_ports(subject: Subject) -> None:
    """The object has every method of both ports, and says its name and losses."""
    async with subject.open() as backend:
        require(isinstance(backend, TrainingBackend), "methods of TrainingBackend are missing")
        require(isinstance(backend, SamplingBackend), "methods of SamplingBackend are missing")
        require(backend.capabilities.name, "capabilities.name is empty")
        require("cross_entropy" in backend.capabilities.losses, "cross_entropy is not among capabilities.losses")


async def work_is_done_in_submission_order(subject: Subject) -> None:
    """Work submitted without waiting gives what the same work gives when each call is waited for; versions count at submission."""
    async with subject.open() as backend:
        waited, start = [await policy(backend, subject)], backend.version
        for index in range(2):
            await step(backend, subject, subject.datum(index))
            waited.append(await policy(backend, subject))
    async with subject.open() as backend:
        pending, snapshots, versions = [], [], []
        for index in range(3):
            pending.append(backend.forward([subject.datum(0), subject.datum(3)], CROSS_ENTROPY))
            snapshots.append(backend.snapshot())
            versions.append(backend.version)
            backend.forward_backward([subject.datum(index)], CROSS_ENTROPY)
            backend.optim_step(subject.adam())
        require(versions == [start, start + 1, start + 2], f"versions at submission were {versions}")
        for submitted, expected in zip(reversed(pending), reversed(waited), strict=True):
            found = list((await submitted.result()).logprobs)
            require(close(found, expected, subject.tolerance), "submitted ahead, the work gave other log-probs")
        frozen = [(await snapshot.result()).version for snapshot in snapshots]
        require(frozen == versions, f"snapshots submitted at {versions} have versions {frozen}")
        again = list((await pending[0].result()).logprobs)
        require(close(again, waited[0], subject.tolerance), "a result awaited twice gave something else")
    require(not close(waited[0], waited[1], subject.tolerance), "an optimizer step changed nothing")


async def gradients_accumulate(subject: Subject) -> None:
    """Two half batches and then a step do what one whole batch and a step do."""
    data = [subject.datum(index, advantage=1.0 + index) for index in range(4)]
    outcomes = []
    for calls in ([data], [data[:2], data[2:]], [data[:2]]):
        async with subject.open() as backend:
            for call in calls:
                backend.forward_backward(call, CROSS_ENTROPY)
            await backend.optim_step(subject.adam()).result()
            await step(backend, subject)
            outcomes.append(await policy(backend, subject))
    require(close(outcomes[0], outcomes[1], subject.tolerance), "two half batches are not one whole batch")
    require(not close(outcomes[0], outcomes[2], subject.tolerance / 100), "the second half batch made no difference")


async def forward_has_no_effect(subject: Subject) -> None:
    """A forward pass leaves gradients and weights as they are."""
    outcomes = []
    for passes in (0, 2):
        async with subject.open() as backend:
            for _ in range(passes):
                backend.forward([subject.datum(5)], CROSS_ENTROPY)
            await step(backend, subject)
            outcomes.append(await policy(backend, subject))
    require(close(outcomes[0], outcomes[1], subject.tolerance), "forward() changed what the next step did")


async def training_learns(subject: Subject) -> None:
    """A few cross-entropy steps on a datum make its trained tokens more likely."""
    async with subject.open() as backend:
        datum = subject.datum()
        losses = []
        for _ in range(4):
            losses.append((await backend.forward_backward([datum], CROSS_ENTROPY).result()).loss)
            await backend.optim_step(subject.adam()).result()
        require(losses[-1] < losses[0], f"losses of four steps on one datum: {losses}")


async def clipping_is_done_or_said(subject: Subject) -> None:
    """A step whose gradient is clipped to next to nothing moves next to nothing; a backend that does not clip warns when it is asked to, once."""
    clipped = attrs.evolve(subject.adam(), grad_clip_norm=1e-16)
    async with subject.open() as backend:
        before = await policy(backend, subject)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                backend.forward_backward([subject.datum()], CROSS_ENTROPY)
                await backend.optim_step(clipped).result()
        moved = not close(before, await policy(backend, subject), subject.tolerance)
    ignored = [str(warning.message) for warning in said if issubclass(warning.category, IgnoredSetting)]
    if backend.capabilities.clips_gradients:
        require(not moved, "a gradient clipped to a norm of 1e-16 moved the weights")
        require(not ignored, f"it warns that it does not clip, but capabilities.clips_gradients is True: {ignored}")
    else:
        require(len(ignored) == 1, f"asked twice to clip, which it says it does not do, it warned {len(ignored)} times")
        require("clip" in ignored[0], f"the warning does not say what is ignored: {ignored[0]}")


async def losses_give_logprobs(subject: Subject) -> None:
    """Every loss of the ports gives a finite sum and, for each datum, the log-probs of its targets."""
    async with subject.open() as backend:
        for name in sorted(backend.capabilities.losses & _FIELDS.keys()):
            data = [subject.datum(0, loss=name), subject.datum(2, loss=name, advantage=-1.0)]
            result = await backend.forward_backward(data, Loss(name)).result()
            require(np.isfinite(result.loss), f"{name}: the loss is {result.loss}")
            shapes = [logprobs.shape for logprobs in result.logprobs]
            require(shapes == [(8,), (8,)], f"{name}: logprobs have shapes {shapes} for two datums of 8 positions")
            plain = (await backend.forward(data, Loss(name)).result()).logprobs
            require(close(result.logprobs, plain, subject.tolerance), f"{name}: forward gives other log-probs")


async def cross_entropy_is_a_sum(subject: Subject) -> None:
    """The cross-entropy of a call is -Σ weight · log-prob over all tokens of all datums."""
    async with subject.open() as backend:
        data = [subject.datum(0), subject.datum(3, advantage=0.5)]
        result = await backend.forward(data, CROSS_ENTROPY).result()
        pairs = zip(data, result.logprobs, strict=True)
        expected = -sum(float((datum.loss_inputs["weights"] * logprobs).sum()) for datum, logprobs in pairs)
        require(abs(result.loss - expected) <= 8 * subject.tolerance, f"loss {result.loss}, the sum is {expected}")


async def bad_datums_are_rejected(subject: Subject) -> None:
    """A datum that does not fit the loss is refused where it is submitted, with its index and the field in the message; nothing else is hurt."""
    async with subject.open() as backend:
        for name in sorted(backend.capabilities.losses & _FIELDS.keys()):
            good = subject.datum(0, loss=name)
            for field in _FIELDS[name]:
                without = {key: value for key, value in good.loss_inputs.items() if key != field}
                _refused(backend, [good, Datum(good.model_input, without)], Loss(name), "1", field)
                short = {**good.loss_inputs, field: good.loss_inputs[field][:-1]}
                _refused(backend, [good, Datum(good.model_input, short)], Loss(name), "1", field)
        _refused(backend, [subject.datum()], Loss("no such loss"), "no such loss")
        await step(backend, subject)


def _refused(backend: Backend, data: list[Datum], loss: Loss, *mentions: str) -> None:
    try:
        backend.forward_backward(data, loss)
    except RequestRejected as error:
        for mention in mentions:
            require(mention in str(error), f"the message does not mention '{mention}': {error}")
    else:
        require(False, f"{loss.name}: accepted a datum that lacks {mentions[-1]}")


async def states_round_trip(subject: Subject) -> None:
    """A restored state has the version, the weights and the optimizer: the next step does what it would have done."""

    async def next_step(backend: Backend) -> list[Logprobs]:
        await step(backend, subject, subject.datum(4))
        return await policy(backend, subject)

    with _directories(1) as (directory,):
        async with subject.open() as backend:
            for index in range(2):
                await step(backend, subject, subject.datum(index))
            await backend.save_state(directory).result()
            version, there = backend.version, await policy(backend, subject)
            expected = await next_step(backend)
        async with subject.open() as backend:
            backend.forward_backward([subject.datum(6)], CROSS_ENTROPY)  # a leftover gradient must not survive the load
            await backend.load_state(directory).result()
            require(backend.version == version, f"version {backend.version} after loading a state of version {version}")
            require(close(await policy(backend, subject), there, subject.tolerance), "the restored weights are others")
            require((await snapshot_of(backend)).version == version, "a snapshot after the load has another version")
            found = await next_step(backend)
            require(
                close(found, expected, subject.tolerance), "the step after the load differs: is the optimizer saved?"
            )


async def states_hold_their_moment(subject: Subject) -> None:
    """A state holds exactly the steps submitted before it, whatever is submitted before it is waited for."""
    with _directories(1) as (directory,):
        async with subject.open() as backend:
            await step(backend, subject)
            version, there = backend.version, await policy(backend, subject)
            saving = backend.save_state(directory)
            await step(backend, subject, subject.datum(2))
            await saving.result()
        async with subject.open() as backend:
            await backend.load_state(directory).result()
            require(backend.version == version, f"the state of version {version} restores as {backend.version}")
            require(
                close(await policy(backend, subject), there, subject.tolerance), "work submitted later is in the state"
            )


async def restarts_count_from_zero(subject: Subject) -> None:
    """A restart is version 0 at submission, with the weights as they were and neither gradients nor an optimizer's memory of before."""
    outcomes = []
    for leftover in (False, True):
        async with subject.open() as backend:
            await step(backend, subject)
            there = await policy(backend, subject)
            if leftover:
                backend.forward_backward([subject.datum(6)], CROSS_ENTROPY)
            restarting, freezing = backend.restart(), backend.snapshot()
            require(backend.version == 0, f"version {backend.version} after a restart was submitted")
            await restarting.result()
            snapshot = await freezing.result()
            require(snapshot.version == 0, f"a snapshot submitted behind a restart is of version {snapshot.version}")
            backend.release(snapshot)
            require(close(await policy(backend, subject), there, subject.tolerance), "a restart changed the weights")
            await step(backend, subject)
            require(backend.version == 1, f"version {backend.version} one step after a restart")
            outcomes.append(await policy(backend, subject))
    require(close(outcomes[0], outcomes[1], subject.tolerance), "a gradient from before the restart was trained on")


async def time_to_live_is_kept_or_refused(subject: Subject) -> None:
    """A state with an hour to live is there at once; a backend whose states just stay says so instead of ignoring the limit."""
    with _directories(1) as (directory,):
        async with subject.open() as backend:
            await step(backend, subject)
            if backend.capabilities.time_to_live:
                await backend.save_state(directory, time_to_live=3600.0).result()
                await backend.load_state(directory).result()
                return
            try:
                await backend.save_state(directory, time_to_live=3600.0).result()
            except RequestRejected as error:
                require("time_to_live" in str(error), f"the message does not mention 'time_to_live': {error}")
            else:
                require(False, "a time to live was taken that the backend says it does not have")


async def damage_is_noticed(subject: Subject) -> None:
    """An empty, incomplete or altered state raises UnusableState, and the backend goes on as it was."""
    with _directories(4) as (good, empty, short, altered):
        async with subject.open() as backend:
            await step(backend, subject)
            await backend.save_state(good).result()
            await backend.save_state(short).result()
            await backend.save_state(altered).result()
            _damage(short, altered)
            before = await policy(backend, subject)
            for directory, how in ((empty, "empty"), (short, "truncated"), (altered, "altered")):
                try:
                    await backend.load_state(directory).result()
                except UnusableState as error:
                    require(str(error), f"the message for a state that is {how} is empty")
                else:
                    require(False, f"a state that is {how} was loaded")
            require(
                close(await policy(backend, subject), before, subject.tolerance), "a refused state changed the weights"
            )
            await backend.load_state(good).result()


def _damage(short: Path, altered: Path) -> None:
    def largest(directory: Path) -> Path:
        return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)

    content = largest(short).read_bytes()
    largest(short).write_bytes(content[: len(content) // 2])
    content = largest(altered).read_bytes()
    middle = len(content) // 2
    largest(altered).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


async def snapshots_round_trip(subject: Subject) -> None:
    """A saved snapshot is served again with its version and weights, beside newer ones."""
    with _directories(1) as (directory,):
        async with subject.open() as backend:
            await step(backend, subject)
            snapshot = await snapshot_of(backend)
            there = await backend.compute_logprobs(snapshot, subject.prompt(0, 9))
            await backend.save_snapshot(snapshot, directory).result()
        async with subject.open() as backend:
            old = await backend.load_snapshot(directory).result()
            require(old.version == snapshot.version, f"version {old.version} restored from {snapshot.version}")
            found = await backend.compute_logprobs(old, subject.prompt(0, 9))
            require(close([found], [there], subject.tolerance), "the restored snapshot has other weights")
            backend.release(old)


async def rejected_work_can_be_followed(subject: Subject) -> None:
    """After a refused call the queue goes on, and the refused datums are in no gradient."""
    outcomes = []
    for refused in (False, True):
        async with subject.open() as backend:
            if refused:
                bad = attrs.evolve(subject.datum(1), loss_inputs={})
                await _swallow(backend, [subject.datum(6), bad])
            await step(backend, subject)
            outcomes.append(await policy(backend, subject))
    require(close(outcomes[0], outcomes[1], subject.tolerance), "datums of a refused call were trained on")


async def _swallow(backend: Backend, data: list[Any]) -> None:
    try:
        await backend.forward_backward(data, CROSS_ENTROPY).result()
    except BackendError:
        return
    require(False, "a datum without loss inputs was accepted")


async def sampling_leaves_training_alone(subject: Subject) -> None:
    """What is sampled, from an old snapshot too, changes nothing for the trainer: the policy it trains, and its next step, are what they would have been."""
    outcomes = []
    for sampled in (False, True):
        async with subject.open() as backend:
            old = await snapshot_of(backend)
            await step(backend, subject)
            if sampled:
                await backend.sample(old, subject.request(seed=3))
                await backend.compute_logprobs(old, subject.prompt(0, 9))
            there = await policy(backend, subject)
            backend.forward_backward([subject.datum(2)], CROSS_ENTROPY)
            if sampled:
                await backend.sample(old, subject.request(seed=4))
            await backend.optim_step(subject.adam()).result()
            outcomes.append([*there, *await policy(backend, subject)])
    require(close(outcomes[0], outcomes[1], subject.tolerance), "sampling from an old snapshot changed what is trained")


CHECKS = (
    backend_has_both_ports,
    work_is_done_in_submission_order,
    gradients_accumulate,
    forward_has_no_effect,
    training_learns,
    clipping_is_done_or_said,
    losses_give_logprobs,
    cross_entropy_is_a_sum,
    bad_datums_are_rejected,
    rejected_work_can_be_followed,
    states_round_trip,
    states_hold_their_moment,
    restarts_count_from_zero,
    time_to_live_is_kept_or_refused,
    damage_is_noticed,
    snapshots_round_trip,
    sampling_leaves_training_alone,
)
