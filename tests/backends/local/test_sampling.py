"""Drawing, stopping, and the sampler thread: who shares a batch, who goes first, what is freed."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.backends import local
from engine.backends.errors import BackendError, RequestRejected
from engine.backends.values import ImageChunk, ModelInput, SampleRequest, SamplingParams

torch = pytest.importorskip("torch")

from engine.backends.local.draws import RandomStream, Rules, choose  # noqa: E402
from engine.backends.local.llama import BoundLlama  # noqa: E402
from engine.backends.local.llama_batch import LlamaBatch  # noqa: E402
from engine.backends.local.tokenizer import LocalTokenizer  # noqa: E402
from engine.backends.stops import StopWatch  # noqa: E402

pytestmark = pytest.mark.local


def request(
    prompt: list[int] | None = None, *, seed: int = 0, samples: int = 1, priority: float = 0.0, **params: Any
) -> SampleRequest:
    tokens = ModelInput.from_tokens(prompt or [65, 66, 67])
    return SampleRequest(tokens, SamplingParams(**{"max_tokens": 8, **params}), seed, samples, priority)


def frequencies(params: SamplingParams, logits: list[float], count: int = 10_000) -> Any:
    logits_B_V = torch.tensor([logits]).expand(count, -1)
    tokens_B, logprobs_B = choose(
        logits_B_V, [RandomStream(5, i).next() for i in range(count)], Rules.of([params] * count, torch.device("cpu"))
    )
    own_V = torch.tensor(logits).log_softmax(-1)
    torch.testing.assert_close(logprobs_B, own_V[tokens_B])
    return np.bincount(tokens_B.numpy(), minlength=len(logits)) / count


LOGITS = [0.0, 2.0, 1.0, -1.0]


def softmax(values: list[float]) -> Any:
    weights = np.exp(np.array(values))
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), softmax(LOGITS)),
        (SamplingParams(temperature=0.5), softmax([2 * value for value in LOGITS])),
        (SamplingParams(top_k=2), softmax([-np.inf, 2.0, 1.0, -np.inf])),
        (SamplingParams(top_k=99), softmax(LOGITS)),
        (SamplingParams(top_p=0.8), softmax([-np.inf, 2.0, 1.0, -np.inf])),
        (SamplingParams(top_p=0.01), [0, 1, 0, 0]),
        (SamplingParams(top_k=3, top_p=0.95), softmax([0.0, 2.0, 1.0, -np.inf])),
        (SamplingParams(temperature=0.0, top_p=0.5), [0, 1, 0, 0]),
    ],
)
def test_tokens_are_drawn_from_the_distribution_asked_for(params: SamplingParams, expected: Any) -> None:
    np.testing.assert_allclose(frequencies(params, LOGITS), expected, atol=0.02)


def test_rows_of_a_batch_keep_their_own_rules() -> None:
    every = [
        SamplingParams(),
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=1),
        SamplingParams(temperature=5.0),
    ]
    logits_B_V = torch.tensor([LOGITS] * 4)
    together, _ = choose(logits_B_V, [0.99] * 4, Rules.of(every, torch.device("cpu")))
    alone = [int(choose(logits_B_V[:1], [0.99], Rules.of([one], torch.device("cpu")))[0]) for one in every]
    assert together.tolist() == alone == [3, 1, 1, 3]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits_B_V = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]] * 3)
    edges = [0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))]
    tokens_B, _ = choose(logits_B_V, edges, Rules.of([SamplingParams()] * 3, torch.device("cpu")))
    assert set(tokens_B.tolist()) <= {1, 3}


def test_random_streams_are_their_keys() -> None:
    def numbers(seed: int, index: int) -> list[float]:
        stream = RandomStream(seed, index)
        return [stream.next() for _ in range(200)]

    assert numbers(1, 0) == numbers(1, 0)
    assert len({tuple(numbers(seed, index)) for seed in (0, 1, -1, 2**63, 2**64 - 2) for index in (0, 1, 2)}) == 15
    assert abs(np.mean(numbers(3, 4)) - 0.5) < 0.06
    assert all(0 <= number < 1 for number in numbers(3, 5))


def stopped_at(tokenizer: Tokenizer, text: bytes, *stop: str | int) -> int | None:
    """How many of a text's bytes (each a token) are taken before the stop is noticed."""
    wrapped = LocalTokenizer(tokenizer)
    letters = {wrapped.inner.decode([token]): token for token in range(256)}
    by_byte = {byte: wrapped.inner.token_to_id(letter) for byte, letter in byte_letters().items()}
    assert len(letters) > 100
    watch = StopWatch(SamplingParams(stop=stop), wrapped.decode)
    tokens: list[int] = []
    for byte in text:
        tokens.append(by_byte[byte])
        if watch.reached(tokens):
            return len(tokens)
    return None


def byte_letters() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (b"ab stop cd", "stop", 7),
        (b"ststop", "stop", 6),
        (b"a\n\nUser: b", "\n\nUser:", 8),
        ("naïve – end".encode(), "ï", 4),
        ("a – b".encode(), "–", 5),
        ("x日本y".encode(), "本y", 8),
        (b"ab\xff\xff\xff\xff\xff\xff\xffend", "end", 12),
        (b"abc", "z", None),
        (b"x" * 500 + b"no more", "no more", 507),
    ],
)
def test_stop_strings_are_seen_wherever_tokens_cut_them(
    tokenizer: Tokenizer, text: bytes, stop: str, expected: int | None
) -> None:
    assert stopped_at(tokenizer, text, stop) == expected


def test_the_first_of_several_stops_counts(tokenizer: Tokenizer) -> None:
    assert stopped_at(tokenizer, b"abcdef", "def", "cd") == 4
    assert stopped_at(tokenizer, b"abcdef", "f", tokenizer.token_to_id("b")) == 2


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    async with local.open(model, threads=1, **options) as backend:
        yield backend, await backend.snapshot().result()


@pytest.mark.anyio
async def test_a_stop_string_ends_a_completion_with_its_tokens(tiny: Path) -> None:
    async with opened(tiny) as (backend, snapshot):
        (free,) = await backend.sample(snapshot, request(max_tokens=30, seed=3))
        text = backend.tokenizer.decode(free.tokens)
        stop = next(
            text[i : i + 2] for i in range(6, 28) if "\ufffd" not in text[i : i + 2] and text[i : i + 2].isprintable()
        )
        (stopped,) = await backend.sample(snapshot, request(max_tokens=30, seed=3, stop=(stop,)))
        assert stopped.stop_reason == "stop"
        assert backend.tokenizer.decode(stopped.tokens).endswith(stop)
        np.testing.assert_array_equal(stopped.tokens, free.tokens[: len(stopped.tokens)])


@pytest.mark.anyio
async def test_the_context_ends_a_completion(tiny: Path) -> None:
    async with opened(tiny) as (backend, snapshot):
        (completion,) = await backend.sample(snapshot, request([65] * 90, max_tokens=50))
        assert (len(completion.tokens), completion.stop_reason) == (6, "length")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request([65] * 96), "prompt: 96 tokens leave no room"),
        (request([65, 259]), "prompt: token id 259"),
        (SampleRequest(ModelInput(()), SamplingParams(), 0), "prompt: it is empty"),
        (SampleRequest(ModelInput((ImageChunk(b"", 4),)), SamplingParams(), 0), "prompt: it holds an image"),
        (request(top_k=0), "params.top_k: 0"),
        (request(stop=("",)), "params.stop: an empty string"),
    ],
)
async def test_requests_that_cannot_be_served_name_their_field(tiny: Path, asked: SampleRequest, message: str) -> None:
    async with opened(tiny) as (backend, snapshot):
        with pytest.raises(RequestRejected, match=message):
            await backend.sample(snapshot, asked)


class Recorder:
    """What the sampler does, step by step: rows in each decode step, and prompts read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.prompts: list[tuple[int, ...]] = []
        self.on_step: Callable[[], None] = lambda: None
        step, prefill = LlamaBatch.step, BoundLlama.prefill

        def recorded_step(batch: Any, tokens_B: Any) -> Any:
            self.rows.append(len(tokens_B))
            self.on_step()
            return step(batch, tokens_B)

        def recorded_prefill(bound: Any, prompts: Any) -> Any:
            self.prompts += [tuple(prompt.tolist()) for prompt in prompts]
            return prefill(bound, prompts)

        monkeypatch.setattr(LlamaBatch, "step", recorded_step)
        monkeypatch.setattr(BoundLlama, "prefill", recorded_prefill)


@pytest.mark.anyio
async def test_requests_join_a_running_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request is sent when the first has begun: from some step on both are decoded together."""
    record = Recorder(monkeypatch)
    async with opened(tiny) as (backend, snapshot):
        started = anyio.Event()
        token = anyio.lowlevel.current_token()
        record.on_step = lambda: anyio.from_thread.run_sync(started.set, token=token)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.sample, snapshot, request(seed=1, samples=2, max_tokens=80))
            await started.wait()
            record.on_step = lambda: None
            await backend.sample(snapshot, request([70, 71], seed=2, max_tokens=4))
            tasks.cancel_scope.cancel()
        assert record.rows[0] == 2
        assert max(record.rows) == 3


@pytest.mark.anyio
async def test_a_prompt_is_read_once_and_the_batch_has_a_limit(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder(monkeypatch)
    async with opened(tiny, max_batch=4) as (backend, snapshot):
        completions = await backend.sample(snapshot, request(samples=10))
        assert len(completions) == 10
        assert record.prompts == [(65, 66, 67)]
        assert max(record.rows) == 4
        wide = record.rows.count(4)
        assert wide >= 12  # two full waves of seven steps, less what the ends of rows leave


@pytest.mark.anyio
async def test_urgent_requests_go_first(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder(monkeypatch)
    async with opened(tiny, max_batch=1) as (backend, snapshot):
        order = [(70, 5.0), (71, 1.0), (72, 1.0), (73, -1.0)]
        started = anyio.Event()
        token = anyio.lowlevel.current_token()
        record.on_step = lambda: anyio.from_thread.run_sync(started.set, token=token)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.sample, snapshot, request([65], max_tokens=80))
            await started.wait()
            record.on_step = lambda: None
            for prompt, priority in order:
                tasks.start_soon(backend.sample, snapshot, request([prompt], priority=priority))
                for _ in range(2):  # trio starts tasks in any order; now this one has handed over its request
                    await anyio.lowlevel.checkpoint()
        assert record.prompts == [(65,), (73,), (71,), (72,), (70,)]


@pytest.mark.anyio
async def test_cancelling_frees_rows_at_the_next_step(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder(monkeypatch)
    async with opened(tiny, max_batch=2) as (backend, snapshot):
        started = anyio.Event()
        token = anyio.lowlevel.current_token()
        record.on_step = lambda: anyio.from_thread.run_sync(started.set, token=token)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.sample, snapshot, request(samples=9, max_tokens=90))
            await started.wait()
            record.on_step = lambda: None
            tasks.cancel_scope.cancel()
        await backend.sample(snapshot, request([70]))
        assert backend.statistics() == {"rows": 0, "waiting": 0, "batches": 0, "snapshots": 1}
        assert len(record.rows) < 60


@pytest.mark.anyio
async def test_a_failing_step_fails_its_requests_and_nothing_else(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder(monkeypatch)

    def explode() -> None:
        raise RuntimeError("out of memory")

    async with opened(tiny) as (backend, snapshot):
        record.on_step = explode
        with pytest.raises(RuntimeError, match="out of memory"):
            await backend.sample(snapshot, request())
        record.on_step = lambda: None
        assert len(await backend.sample(snapshot, request())) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("lora_rank", [None, 4])
async def test_released_weights_are_freed(tiny: Path, lora_rank: int | None) -> None:
    """Also after a request that was cancelled, and one that failed, on them."""
    async with opened(tiny, lora_rank=lora_rank) as (backend, snapshot):
        weights = weakref.ref(snapshot.weights_P)
        await backend.sample(snapshot, request(samples=3))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.sample, snapshot, request(samples=3, max_tokens=90))
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        backend.release(snapshot)
        other = await backend.snapshot().result()
        await backend.sample(other, request())
        gc.collect()
        assert weights() is None
        with pytest.raises(BackendError, match="not live"):
            await backend.sample(snapshot, request())


@pytest.mark.anyio
async def test_snapshots_of_adapters_copy_only_adapters(tiny: Path) -> None:
    async with opened(tiny, lora_rank=2) as (backend, snapshot), opened(tiny) as (_, whole):
        assert snapshot.weights_P.numel() < whole.weights_P.numel() / 4
        a, b = snapshot.for_sampler.bound(), (await backend.snapshot().result()).for_sampler.bound()
        assert a.weights.layers[0].qkv.weight.data_ptr() == b.weights.layers[0].qkv.weight.data_ptr()


@pytest.mark.anyio
async def test_an_idle_backend_uses_no_cpu(tiny: Path) -> None:
    """Waiting is measured in CPU seconds: half a second of idling on the wall, both threads started."""
    async with opened(tiny) as (backend, snapshot):
        await backend.sample(snapshot, request())
        idle = anyio.Event()
        before = time.process_time()
        with anyio.move_on_after(0.5):
            await idle.wait()
        assert time.process_time() - before < 0.01
