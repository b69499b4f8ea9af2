"""Sampling through the SDK: seeds, stops, images, retries, deadlines, cancellation, and the life of snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends import (
    AdamParams,
    BackendError,
    Datum,
    ImageChunk,
    Loss,
    ModelInput,
    RequestRejected,
    SampleRequest,
    SamplingParams,
    TokenChunk,
    TransientError,
    UnusableState,
)
from engine.backends.tinker.backend import TinkerBackend
from engine.backends.tinker.testing import FakeTinker, Fault, Line, values
from engine.runtime import simulate

pytestmark = pytest.mark.anyio

LINES: tuple[Line, ...] = ("0.25", "0.38")
PNG = b"\x89PNG\r\n\x1a\n and so on"


def request(seed: int = 1, num_samples: int = 1, **params: Any) -> SampleRequest:
    return SampleRequest(
        ModelInput.from_tokens([3, 4, 5]), SamplingParams(**{"max_tokens": 8, **params}), seed, num_samples
    )


async def step(backend: TinkerBackend) -> None:
    inputs = {"target_tokens": np.array([1, 2]), "weights": np.ones(2, np.float32)}
    backend.forward_backward([Datum(ModelInput.from_tokens([3, 4]), inputs)], Loss("cross_entropy"))
    await backend.optim_step(AdamParams(0.1)).result()


async def test_one_request_for_all_samples_and_no_stream_shared_between_seeds() -> None:
    """Servers count up from the seed: neighbouring seeds of ours must not be neighbours there, or their samples would be the same ones, shifted."""
    fake = FakeTinker()
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        drawn = [await backend.sample(snapshot, request(seed, num_samples=4)) for seed in (7, 8, 2**63 - 1)]
        assert [call for call, _ in fake.service.log].count("sample") == 3
        texts = [each.tokens.tobytes() for samples in drawn for each in samples]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("line", LINES)
async def test_stop_ids_and_strings_together(line: Line) -> None:
    """No server takes both: the ids are sent, and the strings are looked for here, whichever comes first."""
    fake = FakeTinker(line)
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        (free,) = await backend.sample(snapshot, request())
        text = "".join(chr(65 + token) for token in free.tokens)
        backend.__dict__["tokenizer"] = type(
            "Text", (), {"decode": staticmethod(lambda ids: "".join(chr(65 + i) for i in ids))}
        )()
        for stop, end in (
            ((text[2:4], int(free.tokens[6])), 4),
            ((text[5:7], int(free.tokens[1])), 2),
            ((text[4:6],), 6),
            (("no such text", 127), 8),
        ):
            (cut,) = await backend.sample(snapshot, request(stop=stop))
            assert cut.tokens.tolist() == free.tokens[:end].tolist()
            assert len(cut.logprobs) == end
            assert cut.stop_reason == ("stop" if end < 8 else "length")


async def test_no_stops_means_none_and_not_the_servers_own() -> None:
    fake = FakeTinker()
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        seen: list[Any] = []
        sample = fake.service.sample
        fake.service.sample = lambda *args: seen.append(args[3]) or sample(*args)  # type: ignore[method-assign,func-returns-value]
        await backend.sample(snapshot, request(temperature=0.5, top_k=3, top_p=0.9))
        (sent,) = seen
        assert sent.stop == []
        assert (sent.max_tokens, sent.temperature, sent.top_k, sent.top_p) == (8, 0.5, 3, 0.9)
        assert 0 <= sent.seed < 2**31


async def test_images_are_read_and_sent(tmp_path: Path) -> None:
    fake = FakeTinker()
    path = tmp_path / "image.jpg"
    path.write_bytes(b"\xff\xd8\xff and so on")
    text = TokenChunk([3, 4])
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        for source in (PNG, str(path), "https://example.org/image.png?size=2"):
            prompt = ModelInput((text, ImageChunk(source, 3), text))
            (completion,) = await backend.sample(snapshot, SampleRequest(prompt, SamplingParams(max_tokens=2), 1))
            assert len(completion.tokens) == 2
            logprobs_T = await backend.compute_logprobs(snapshot, prompt)
            assert np.flatnonzero(np.isfinite(logprobs_T)).tolist() == [1, 5, 6]
        for source, message in (
            (b"GIF89a", "neither PNG nor JPEG"),
            (str(tmp_path / "none.png"), r"prompt: the image .* cannot be read"),
            ("https://example.org/image.webp", "neither .png nor .jpeg"),
        ):
            with pytest.raises(RequestRejected, match=message):
                await backend.sample(
                    snapshot, SampleRequest(ModelInput((ImageChunk(source, 1),)), SamplingParams(max_tokens=1), 1)
                )


@pytest.mark.parametrize("leading_none", [True, False])
async def test_scores_of_either_length(leading_none: bool) -> None:
    fake = FakeTinker()
    fake.service.late_none = leading_none
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        logprobs_T = await backend.compute_logprobs(snapshot, ModelInput.from_tokens([3, 4, 5, 6]))
        assert np.isnan(logprobs_T[0])
        assert (logprobs_T[1:] < 0).all()
        alone = await backend.compute_logprobs(snapshot, ModelInput.from_tokens([3]))
        assert alone.shape == (1,)
        assert np.isnan(alone[0])


def answering(**changes: Any) -> Fault:
    return Fault(change=lambda _: values.SampleResponse(sequences=[values.SampledSequence(**changes)]))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answering(tokens=[1, 2], logprobs=None, stop_reason="length"), "without log-probs"),
        (answering(tokens=[1, 2], logprobs=[-1.0], stop_reason="length"), "2 tokens with 1 log-probs"),
        (answering(tokens=[], logprobs=[], stop_reason="stop"), "without tokens"),
        (answering(tokens=[1, 9], logprobs=[-1.0, float("nan")], stop_reason="stop"), "token 9 at position 1 of a completion is nan"),
        (answering(tokens=[1] * 9, logprobs=[-1.0] * 9, stop_reason="length"), "9 tokens where max_tokens is 8"),
        (Fault(change=lambda _: values.SampleResponse(sequences=[])), "0 completions where 1 were asked for"),
    ],
)  # fmt: skip
async def test_completions_that_make_no_sense_are_noticed(fault: Fault, message: str) -> None:
    fake = FakeTinker()
    fake.service.plan("sample", fault)
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        with pytest.raises(BackendError, match=message):
            await backend.sample(snapshot, request())


async def test_scores_that_make_no_sense_are_noticed() -> None:
    fake = FakeTinker()
    sequence = ModelInput.from_tokens([3, 4, 5])
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        for answer, message in (
            (None, "no log-probs of the prompt"),
            ([None, -1.0], None),
            ([-1.0], "1 log-probs for a sequence of 3 tokens"),
            ([None, -1.0, float("nan")], r"position 2 is nan: is the token there \(5\)"),
            ([None, None, -1.0], "position 1 is nan"),
        ):
            fake.service.plan("compute_logprobs", Fault(change=lambda _, answer=answer: answer))
            if message is None:
                with pytest.raises(BackendError):
                    await backend.compute_logprobs(snapshot, sequence)
                continue
            with pytest.raises(BackendError, match=message):
                await backend.compute_logprobs(snapshot, sequence)


async def test_prompts_that_do_not_fit() -> None:
    fake = FakeTinker()
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        for prompt, params, message in (
            ([1] * 200, {}, "prompt: 200 tokens leave no room"),
            ([128], {}, "prompt: token id 128; the vocabulary ends at 127"),
            ([-1], {}, "prompt: token id -1"),
            ([], {}, "prompt: it is empty"),
            ([1], {"top_k": 0}, "params.top_k: 0"),
            ([1], {"stop": ("",)}, "params.stop"),
        ):
            with pytest.raises(RequestRejected, match=message):
                await backend.sample(
                    snapshot, SampleRequest(ModelInput.from_tokens(prompt), SamplingParams(**params), 1)
                )
        with pytest.raises(RequestRejected, match="sequence: 201 tokens; the model's context is 200"):
            await backend.compute_logprobs(snapshot, ModelInput.from_tokens([1] * 201))
        assert backend.statistics().requests == 0


# ---- on a virtual clock ----------------------------------------------------------------------------------------------------------------


def test_rate_limits_and_server_errors_are_tried_again_after_a_pause_and_counted() -> None:
    async def main() -> None:
        fake = FakeTinker()
        async with fake.open(attempts=3, backoff=1.0) as backend:
            snapshot = await backend.snapshot().result()
            fake.service.plan(
                "sample",
                Fault(error=values.RateLimitError("slow down")),
                Fault(error=values.InternalServerError("oops")),
                None,
                *[Fault(error=values.APIConnectionError("no route"))] * 3,
            )
            began = anyio.current_time()
            assert len(await backend.sample(snapshot, request())) == 1
            assert 1 + 2 <= anyio.current_time() - began <= 1.5 * (1 + 2)
            assert backend.statistics().retries == 2
            with pytest.raises(TransientError, match="sample at version 0: no route"):
                await backend.sample(snapshot, request())
            assert (backend.statistics().retries, backend.statistics().requests) == (4, 2)

    simulate(main).unwrap()


def test_what_trying_again_cannot_mend_is_not_tried_again() -> None:
    async def main() -> None:
        fake = FakeTinker()
        async with fake.open() as backend:
            snapshot = await backend.snapshot().result()
            for error, kind in (
                (values.BadRequestError("no"), RequestRejected),
                (values.RequestFailedError("your fault", "user"), RequestRejected),
                (values.AuthenticationError("tml-secret is wrong"), BackendError),
                (ValueError("Error retrieving result: {'detail': 'too long'} (status 400)"), RequestRejected),
                (RuntimeError("poisoned"), BackendError),
            ):
                fake.service.plan("sample", Fault(error=error))
                with pytest.raises(kind) as raised:
                    await backend.sample(snapshot, request())
                assert "secret" not in str(raised.value)
                assert not isinstance(raised.value, TransientError)
            assert backend.statistics().retries == 0
            fake.service.plan("sample", Fault(error=values.RequestFailedError("ours", "server")))
            await backend.sample(snapshot, request())
            assert backend.statistics().retries == 1

    simulate(main).unwrap()


def test_a_lost_request_ends_at_its_deadline_and_is_cancelled() -> None:
    async def main() -> None:
        fake = FakeTinker()
        async with fake.open(attempts=2, request_deadline=100.0, backoff=0.0) as backend:
            snapshot = await backend.snapshot().result()
            fake.service.plan("sample", Fault(lost=True), None, Fault(lost=True), Fault(lost=True))
            began = anyio.current_time()
            await backend.sample(snapshot, request())
            assert anyio.current_time() - began == pytest.approx(100, abs=1)
            with pytest.raises(
                TransientError, match="no answer from the server at https://fake within the deadline of 100 s"
            ):
                await backend.sample(snapshot, request())
            assert fake.service.cancelled == ["sample"] * 3
            assert backend.statistics().timeouts == 3

    simulate(main).unwrap()


def test_a_server_that_is_gone_is_noticed_within_a_minute() -> None:
    async def main() -> None:
        fake = FakeTinker()
        async with fake.open(attempts=1) as backend:
            snapshot = await backend.snapshot().result()
            fake.service.down = True
            began = anyio.current_time()
            with pytest.raises(TransientError, match=r"out of reach for \d+ s \(connection refused\)"):
                await backend.sample(snapshot, request())
            assert 40 < anyio.current_time() - began < 90
            pending = backend.forward(
                [Datum(ModelInput.from_tokens([1]), {"target_tokens": np.array([1]), "weights": np.ones(1)})],
                Loss("cross_entropy"),
            )
            with pytest.raises(TransientError, match="forward: the server at https://fake has been out of reach"):
                await pending.result()
            assert anyio.current_time() - began < 120

    simulate(main).unwrap()


def test_a_slow_server_is_no_dead_one() -> None:
    """Training work waits in turn: its deadline begins anew with every answer to anything."""

    async def main() -> None:
        fake = FakeTinker(latency=lambda call: 1000.0 if call == "forward" else 0.0)
        data = [Datum(ModelInput.from_tokens([1]), {"target_tokens": np.array([1]), "weights": np.ones(1)})]
        async with fake.open() as backend:
            pending = [backend.forward(data, Loss("cross_entropy")) for _ in range(6)]
            for each in reversed(pending):
                await each.result()
            fake.service.plan("forward", Fault(seconds=3000.0))
            with pytest.raises(TransientError, match="within the deadline of 1800 s"):
                await backend.forward(data, Loss("cross_entropy")).result()

    simulate(main).unwrap()


@pytest.mark.parametrize("line", LINES)
def test_cancellation_reaches_the_server(line: Line) -> None:
    async def main() -> None:
        fake = FakeTinker(line, latency=lambda call: 10.0 if call == "sample" else 0.0)
        async with fake.open() as backend:
            snapshot = await backend.snapshot().result()
            with anyio.move_on_after(5):
                async with anyio.create_task_group() as tasks:
                    for seed in range(8):
                        tasks.start_soon(backend.sample, snapshot, request(seed))
            assert fake.service.cancelled == ["sample"] * 8
            statistics = backend.statistics()
            assert (statistics.cancelled, statistics.in_flight) == (8, 0)

    simulate(main).unwrap()


# ---- snapshots -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES)
async def test_released_snapshots_are_deleted_and_kept_ones_stay(line: Line, tmp_path: Path) -> None:
    fake = FakeTinker(line)
    async with fake.open(snapshot_ttl=7200.0) as backend:
        first = await backend.snapshot().result()
        await step(backend)
        second = await backend.snapshot().result()
        assert [stored.ttl for stored in fake.service.checkpoints.values()] == [7200, 7200]
        await backend.save_snapshot(first, tmp_path).result()
        (kept,) = [path for path, stored in fake.service.checkpoints.items() if stored.ttl is None]
        assert kept in (tmp_path / "tinker.json").read_text()
        backend.release(first)
        backend.release(second)
        await anyio.wait_all_tasks_blocked()
        assert list(fake.service.checkpoints) == [kept]
        again = await backend.load_snapshot(tmp_path).result()
        assert again.version == 0
    assert list(fake.service.checkpoints) == [kept]


async def test_what_cannot_be_deleted_keeps_nobody() -> None:
    fake = FakeTinker()
    async with fake.open() as backend:
        snapshot = await backend.snapshot().result()
        fake.service.plan("delete", Fault(error=values.InternalServerError("disk")))
        backend.release(snapshot)
        await anyio.wait_all_tasks_blocked()
        assert backend.statistics().not_deleted == 1
        with pytest.raises(BackendError, match=r"version 0.* not live"):
            await backend.sample(snapshot, request())


async def test_snapshots_of_their_own_free_their_models() -> None:
    """Where a server has few places for models, a released snapshot gives its up, and so does the run at the end."""
    fake = FakeTinker(shared_slot=True)
    async with fake.open() as backend:
        for _ in range(3):
            snapshot = await backend.snapshot().result()
            await step(backend)
            backend.release(snapshot)
        last = await backend.snapshot().result()
        await anyio.wait_all_tasks_blocked()
        unloaded = [run.unloaded for run in fake.service.runs.values()]
        assert unloaded == [False, True, True, True, False]
        assert last.version == 3
    assert all(run.unloaded for run in fake.service.runs.values())
    assert fake.service.checkpoints == {}


@pytest.mark.parametrize("shared_slot", [False, True])
async def test_states_that_the_server_has_no_more(shared_slot: bool, tmp_path: Path) -> None:
    state, kept = tmp_path / "state", tmp_path / "snapshot"
    state.mkdir()
    kept.mkdir()
    fake = FakeTinker(shared_slot=shared_slot)
    async with fake.open() as backend:
        await step(backend)
        await backend.save_state(state).result()
        await backend.save_snapshot(await backend.snapshot().result(), kept).result()
        stored = dict(fake.service.checkpoints)
        fake.service.checkpoints.clear()
        with pytest.raises(
            UnusableState,
            match=r"the server cannot restore tinker://run-0/weights/callsheet-state-000001-.* does not exist",
        ):
            await backend.load_state(state).result()
        assert backend.version == 1
        await step(backend)  # the run goes on as it was
        fake.service.checkpoints.update(stored)
        call = "create_training_client_from_state_with_optimizer"
        fake.service.plan(call, Fault(error=values.APIConnectionError("no route")))
        with pytest.raises(TransientError, match="no route"):
            await backend.load_state(state).result()
        await backend.load_state(state).result()
        assert backend.version == 1
    other = FakeTinker()
    async with other.open(lora_rank=4) as backend:
        with pytest.raises(UnusableState, match="its LoRA rank is 8, not 4"):
            await backend.load_state(state).result()
        with pytest.raises(UnusableState, match="holds a training state; wanted is a snapshot"):
            await backend.load_snapshot(state).result()


async def test_time_to_live_of_a_state(tmp_path: Path) -> None:
    fake = FakeTinker()
    async with fake.open() as backend:
        with pytest.raises(RequestRejected, match=r"time_to_live must be None .* not 60"):
            backend.save_state(tmp_path, time_to_live=60.0)
        await backend.save_state(tmp_path, time_to_live=86400.0).result()
        (stored,) = fake.service.checkpoints.values()
        assert stored.ttl == 86400
        assert '"expires": "20' in (tmp_path / "tinker.json").read_text()


@pytest.mark.parametrize("shared_slot", [False, True], ids=["hosted", "skyrl"])
def test_weights_are_in_use_while_something_can_come_to_hold_them(shared_slot: bool, tmp_path: Path) -> None:
    """While a snapshot of them lives, and until the checkpoint that is being written names them."""
    fake = FakeTinker(shared_slot=shared_slot)

    async def main() -> None:
        async with fake.open() as backend:
            snapshot = await backend.snapshot().result()
            assert {backend.in_use(path) for path in fake.service.checkpoints} == {True}
            saving = backend.save_snapshot(snapshot, tmp_path)
            backend.release(snapshot)
            await saving.result()
            (remote,) = backend.elsewhere(tmp_path)
            assert not backend.in_use(remote.path)
            await anyio.sleep(1)
            assert set(fake.service.checkpoints) == {remote.path}  # of a model of its own, the state alone
            assert (await backend.discard([remote.path, "tinker://run-0/weights/none"])).deleted == {remote.path}
            assert fake.service.checkpoints == {}

    simulate(main).unwrap()
