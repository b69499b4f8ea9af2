"""Promises of the sampling port."""

from __future__ import annotations

import struct
import zlib

import anyio
import attrs
import numpy as np

from engine.backends.conformance.subject import CROSS_ENTROPY, Subject, close, policy, require, same, snapshot_of, step
from engine.backends.errors import BackendError, RequestRejected
from engine.backends.values import Datum, ImageChunk, ModelInput


async def completions_are_well_formed(subject: Subject) -> None:
    """Tokens int32 and log-probs float32 of one length, at most `max_tokens`; log-probs finite and not above 0; the snapshot's version."""
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        for max_tokens in (1, subject.max_tokens):
            completions = await backend.sample(snapshot, subject.request(num_samples=3, max_tokens=max_tokens))
            require(len(completions) == 3, f"num_samples=3 gave {len(completions)} completions")
            for completion in completions:
                tokens, logprobs = completion.tokens, completion.logprobs
                require(tokens.dtype == np.int32, f"tokens are {tokens.dtype}, not int32")
                require(logprobs.dtype == np.float32, f"logprobs are {logprobs.dtype}, not float32")
                require(tokens.ndim == 1 and tokens.shape == logprobs.shape, "tokens and logprobs differ in shape")
                require(1 <= len(tokens) <= max_tokens, f"{len(tokens)} tokens where max_tokens is {max_tokens}")
                require(np.isfinite(logprobs).all() and logprobs.max() <= 1e-6, "logprobs must be finite and at most 0")
                require(completion.stop_reason in {"stop", "length"}, f"stop_reason is {completion.stop_reason!r}")
                reached = completion.stop_reason == "stop" or len(tokens) == max_tokens
                require(reached, "stop_reason 'length' before max_tokens was reached")
                require(completion.version == snapshot.version, "a completion's version is not its snapshot's")


async def seeds_reproduce(subject: Subject) -> None:
    """The same request gives the same tokens; another seed gives others."""
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        first = await backend.sample(snapshot, subject.request(seed=5, num_samples=2))
        again = await backend.sample(snapshot, subject.request(seed=5, num_samples=2))
        require(same(first, again), "the same seed gave other tokens")
        others = [await backend.sample(snapshot, subject.request(seed=seed, num_samples=2)) for seed in (6, 7)]
        require(not all(same(first, other) for other in others), "other seeds gave the same tokens")
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        fresh = await backend.sample(snapshot, subject.request(seed=5, num_samples=2))
        require(same(first, fresh), "the same seed gave other tokens on another backend of the same weights")


async def samples_do_not_depend_on_company(subject: Subject) -> None:
    """Sample i is a function of (seed, i): not of `num_samples`, nor of what else is sampled meanwhile, on this snapshot or another."""
    async with subject.open() as backend:
        old = await snapshot_of(backend)
        await step(backend, subject)
        new = await snapshot_of(backend)
        requests = [subject.request(seed=seed, num_samples=1 + seed % 3, start=seed) for seed in range(6)]
        asked = [(snapshot, request) for request in requests for snapshot in (old, new)]
        alone = [await backend.sample(snapshot, request) for snapshot, request in asked]
        together: dict[int, object] = {}

        async def ask(index: int) -> None:
            together[index] = await backend.sample(*asked[index])

        async with anyio.create_task_group() as tasks:
            for index in range(len(asked)):
                tasks.start_soon(ask, index)
        for index, completions in enumerate(alone):
            found = together[index]
            require(isinstance(found, list | tuple) and same(completions, found), "tokens depend on other requests")
        few = await backend.sample(old, subject.request(seed=9, num_samples=2))
        many = await backend.sample(old, subject.request(seed=9, num_samples=5))
        require(same(few, many[:2]), "sample 0 and 1 of a request depend on its num_samples")


async def samples_of_a_request_differ(subject: Subject) -> None:
    """The samples of one request are drawn independently."""
    async with subject.open() as backend:
        completions = await backend.sample(await snapshot_of(backend), subject.request(num_samples=4))
        different = {completion.tokens.tobytes() for completion in completions}
        require(len(different) > 1, "all four samples of a request are equal")


async def temperature_zero_is_greedy(subject: Subject) -> None:
    """At temperature 0 neither the seed nor the sample's index matters."""
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        a = await backend.sample(snapshot, subject.request(seed=1, num_samples=2, temperature=0.0))
        b = await backend.sample(snapshot, subject.request(seed=2, num_samples=2, temperature=0.0))
        require(same(a, b) and same(a[:1], a[1:]), "greedy samples differ")


async def stop_tokens_end_a_completion(subject: Subject) -> None:
    """A completion ends with the first of its stop tokens, which is part of it; the reason is 'stop'."""
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        for seed in range(3, 6):
            (free,) = await backend.sample(snapshot, subject.request(seed=seed))
            stop = int(free.tokens[len(free.tokens) // 2])
            end = int(np.flatnonzero(free.tokens == stop)[0]) + 1
            (stopped,) = await backend.sample(snapshot, subject.request(seed=seed, stop=(stop,)))
            require(np.array_equal(stopped.tokens, free.tokens[:end]), f"stop token {stop}: not cut right behind it")
            require(len(stopped.logprobs) == end, f"stop token {stop}: logprobs are not cut with the tokens")
            require(stopped.stop_reason == "stop", f"stop token {stop}: stop_reason is {stopped.stop_reason!r}")


async def logprobs_agree(subject: Subject) -> None:
    """`compute_logprobs` has NaN at position 0, and elsewhere what sampling reported and the trainer's forward pass computes."""
    async with subject.open() as backend:
        await step(backend, subject)
        snapshot = await snapshot_of(backend)
        request = subject.request(seed=11, num_samples=2)
        for completion in await backend.sample(snapshot, request):
            sequence = request.prompt.append(completion.tokens)
            logprobs = await backend.compute_logprobs(snapshot, sequence)
            require(logprobs.shape == (sequence.length,), f"shape {logprobs.shape} for {sequence.length} tokens")
            require(
                np.isnan(logprobs[0]) and np.isfinite(logprobs[1:]).all(), "NaN belongs at position 0 and only there"
            )
            sampled = logprobs[request.prompt.length :]
            require(
                close([sampled], [completion.logprobs], subject.tolerance),
                "sampled log-probs are not compute_logprobs'",
            )
        datum = subject.datum()
        whole = datum.model_input.append(datum.loss_inputs["target_tokens"][-1:])
        served = await backend.compute_logprobs(snapshot, whole)
        trained = (await policy(backend, subject))[0]
        require(close([served[1:]], [trained], subject.tolerance), "sampler and trainer disagree on the same weights")


async def top_p_and_top_k_leave_logprobs_alone(subject: Subject) -> None:
    """Reported log-probs are the model's own, at temperature 1 and without truncation, however the tokens were chosen."""
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        for params in ({"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 2}):
            request = subject.request(seed=2, **params)
            (completion,) = await backend.sample(snapshot, request)
            whole = await backend.compute_logprobs(snapshot, request.prompt.append(completion.tokens))
            own = whole[request.prompt.length :]
            require(close([own], [completion.logprobs], subject.tolerance), f"{params} changed the reported log-probs")


async def snapshots_are_frozen(subject: Subject) -> None:
    """A snapshot serves its own weights while and after the trainer trains."""
    async with subject.open() as backend:
        old = await snapshot_of(backend)
        sequence = subject.prompt(0, 9)
        before = await backend.compute_logprobs(old, sequence)
        sampled = await backend.sample(old, subject.request(seed=4))
        for _ in range(2):
            await step(backend, subject)
        new = await snapshot_of(backend)
        require(
            close([await backend.compute_logprobs(old, sequence)], [before], 0.0), "training changed an old snapshot"
        )
        require(
            same(await backend.sample(old, subject.request(seed=4)), sampled), "an old snapshot samples other tokens"
        )
        after = await backend.compute_logprobs(new, sequence)
        require(
            not close([after], [before], subject.tolerance), "a snapshot behind two steps equals the one before them"
        )
        require(
            (old.version + 2, new.version) == (new.version, backend.version), "snapshot versions do not count the steps"
        )


async def released_snapshots_are_gone(subject: Subject) -> None:
    """A released snapshot is refused, for sampling and for releasing again; other snapshots stay."""
    async with subject.open() as backend:
        first, second = await snapshot_of(backend), await snapshot_of(backend)
        backend.release(first)
        try:
            await backend.sample(first, subject.request())
        except BackendError:
            pass
        else:
            require(False, "a released snapshot was sampled from")
        try:
            backend.release(first)
        except Exception:  # noqa: BLE001  (the port says only that it is an error)
            released_twice = False
        else:
            released_twice = True
        require(not released_twice, "releasing twice went unnoticed")
        require(await backend.sample(second, subject.request()), "releasing one snapshot took another with it")


async def cancelled_calls_leave_nothing(subject: Subject) -> None:
    """Cancelled sampling calls free what they held: what is asked afterwards is answered as ever."""
    async with subject.open() as backend:
        snapshot = await snapshot_of(backend)
        expected = await backend.sample(snapshot, subject.request(seed=8, num_samples=2))
        for delay in range(3):
            async with anyio.create_task_group() as tasks:
                for seed in range(8):
                    tasks.start_soon(backend.sample, snapshot, subject.request(seed=seed, num_samples=2))
                for _ in range(delay):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        with anyio.fail_after(60):
            again = await backend.sample(snapshot, subject.request(seed=8, num_samples=2))
        require(same(again, expected), "a request after cancelled ones gave other tokens")
        await step(backend, subject)


async def prompts_that_do_not_fit_are_rejected(subject: Subject) -> None:
    """A prompt that fills the model's context is refused by name, before anything is computed."""
    async with subject.open() as backend:
        longest = backend.capabilities.max_context
        require(longest is not None, "capabilities.max_context is unknown: declare this check as a gap")
        prompt = ModelInput.from_tokens([subject.tokens[0]] * ((longest or 0) + 1))
        snapshot = await snapshot_of(backend)
        try:
            await backend.compute_logprobs(snapshot, prompt)
        except RequestRejected as error:
            require(str(prompt.length) in str(error), f"the message does not say how long the prompt is: {error}")
        else:
            require(False, "a sequence longer than the model's context was accepted")


async def images_are_taken_or_rejected(subject: Subject) -> None:
    """A prompt and a datum with an image are taken by a backend that declares `images`, and rejected before anything is computed by one that does not."""
    async with subject.open() as backend:
        text = subject.prompt().chunks
        prompt = ModelInput((*text, ImageChunk(_grey_square(), 4), *text))
        request = attrs.evolve(subject.request(num_samples=2), prompt=prompt)
        length = prompt.length
        targets_T, weights_T = np.zeros(length, np.int64), np.zeros(length, np.float32)
        targets_T[-2:], weights_T[-2:] = subject.tokens[0], 1.0
        datum = Datum(prompt, {"target_tokens": targets_T, "weights": weights_T})
        snapshot = await snapshot_of(backend)
        if backend.capabilities.images:
            require(len(await backend.sample(snapshot, request)) == 2, "two samples of a prompt with an image")
            result = await backend.forward([datum], CROSS_ENTROPY).result()
            require(result.logprobs[0].shape == (length,), "a log-prob for every position, those of the image too")
            return
        for what in ("a prompt", "a datum"):
            try:
                if what == "a prompt":
                    await backend.sample(snapshot, request)
                else:
                    await backend.forward([datum], CROSS_ENTROPY).result()
            except RequestRejected as error:
                require("image" in str(error), f"the message does not say that it is the image: {error}")
            else:
                require(False, f"{what} with an image was accepted, but capabilities.images is False")


def _grey_square(side: int = 32) -> bytes:
    """A PNG file."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([128]) * (3 * side)) * side)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


CHECKS = (
    completions_are_well_formed,
    seeds_reproduce,
    samples_do_not_depend_on_company,
    samples_of_a_request_differ,
    temperature_zero_is_greedy,
    stop_tokens_end_a_completion,
    logprobs_agree,
    top_p_and_top_k_leave_logprobs_alone,
    snapshots_are_frozen,
    released_snapshots_are_gone,
    cancelled_calls_leave_nothing,
    prompts_that_do_not_fit_are_rejected,
    images_are_taken_or_rejected,
)
