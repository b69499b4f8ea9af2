"""What the tinker backend costs beside the bare SDK: CPU time of this process for each sample, and for each datum that is trained on.

    python -m benchmarks.tinker_adapter                                          # in an environment with the SDK, either line
    python -m benchmarks.tinker_adapter --base-url URL --model MODEL             # against a real server, with TINKER_API_KEY

Both sides ask the same server for the same: rounds of concurrent requests for one sample each, then rounds of forward-backward passes. Sides take turns, each
in a process of its own, and a figure is the median over rounds without the first, then over repeats, the ratio that of each pair of neighbours. The server's
time is not in it: it is another process. Both give the same: tokens with log-probs, and a pass's log-probs and loss; the backend also checks what it sends and gets.

Without --base-url the server is `benchmarks.instant_tinker`, which has every answer ready. That is the figure to read: a busy server only adds waiting and asking
again to both sides alike, which hides what the adapter costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import anyio
import numpy as np

from benchmarks import measuring
from engine.backends.values import AdamParams, Datum, Loss, ModelInput, SampleRequest, SamplingParams

PROMPT = [100 + index % 50 for index in range(24)]
LENGTH = 24
MODEL = "instant"


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One side, in this process: CPU seconds a sample and a datum."""
    measured: dict[str, float] = anyio.run(_adapter if case["side"] == "adapter" else _bare, case)
    return measured


async def _rounds(ask: Callable[[int], Coroutine[Any, Any, None]], count: int, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of one of `count` concurrent calls: the process's, and of it those of the event loop's thread (the SDK has one of its own)."""
    spent = []
    for _ in range(rounds + 1):
        began = time.process_time(), time.thread_time()
        async with anyio.create_task_group() as tasks:
            for index in range(count):
                tasks.start_soon(ask, index)
        spent.append((time.process_time() - began[0], time.thread_time() - began[1]))
    process, thread = (statistics.median(column) / count for column in zip(*spent[1:], strict=True))
    return process, thread


async def _measured(
    sample: Callable[[int], Coroutine[Any, Any, None]],
    train: Callable[[int], Coroutine[Any, Any, None]],
    case: dict[str, Any],
) -> dict[str, float]:
    process, thread = await _rounds(sample, case["concurrent"], case["rounds"])
    datums, _ = await _rounds(train, 1, case["rounds"])
    return {"sample": process, "of it in the event loop's thread": thread, "datum": datums / case["datums"]}


def _rows() -> tuple[Any, Any]:
    row = np.array([*PROMPT, 7])
    return row[:-1], {"target_tokens": row[1:].astype(np.int64), "weights": np.ones(LENGTH, np.float32)}


async def _adapter(case: dict[str, Any]) -> dict[str, float]:
    from engine.backends import tinker

    tokens, inputs = _rows()
    async with tinker.open(case["model"], lora_rank=8, base_url=case["url"], seed=1) as backend:
        snapshot = await backend.snapshot().result()
        prompt, params = ModelInput.from_tokens(PROMPT), SamplingParams(max_tokens=8)

        async def sample(index: int) -> None:
            (completion,) = await backend.sample(snapshot, SampleRequest(prompt, params, index))
            if len(completion.tokens) != len(completion.logprobs):
                raise AssertionError

        async def train(_: int) -> None:
            data = [Datum(ModelInput.from_tokens(tokens), inputs) for _ in range(case["datums"])]
            passed = backend.forward_backward(data, Loss("cross_entropy"))
            stepped = backend.optim_step(AdamParams())
            result = await passed.result()
            await stepped.result()
            if len(result.logprobs) != case["datums"] or not np.isfinite(result.loss):
                raise AssertionError

        return await _measured(sample, train, case)


async def _bare(case: dict[str, Any]) -> dict[str, float]:
    """As one would write it with the SDK alone, on asyncio."""
    from engine.backends.tinker.sdk import Sdk, load_sdk

    sdk = Sdk(load_sdk())
    types = sdk.types
    tokens, inputs = _rows()
    service = await anyio.to_thread.run_sync(lambda: sdk.module.ServiceClient(base_url=case["url"]))
    await anyio.to_thread.run_sync(lambda: service.holder)
    creating: Future[Any] = sdk.client(service, "create_lora_training_client", base_model=case["model"], rank=8, seed=1)
    client = await asyncio.wrap_future(creating)
    saving = sdk.future(client.save_weights_for_sampler(f"benchmark-{time.time_ns()}"))
    path = (await asyncio.wrap_future(saving)).path
    sampler = await asyncio.wrap_future(sdk.client(service, "create_sampling_client", model_path=path))

    async def sample(index: int) -> None:
        prompt = types.ModelInput.from_ints(PROMPT)
        params = types.SamplingParams(max_tokens=8, seed=index, stop=[])
        response = await asyncio.wrap_future(sdk.future(sampler.sample(prompt, 1, params)))
        if len(response.sequences[0].tokens) != len(response.sequences[0].logprobs):
            raise AssertionError

    async def train(_: int) -> None:
        data = [
            types.Datum(model_input=types.ModelInput.from_ints(tokens.tolist()), loss_fn_inputs=inputs)
            for _ in range(case["datums"])
        ]
        passed = sdk.future(client.forward_backward(data, "cross_entropy"))
        stepped = sdk.future(client.optim_step(types.AdamParams()))
        output = await asyncio.wrap_future(passed)
        await asyncio.wrap_future(stepped)
        logprobs = [np.array(each["logprobs"].to_numpy()) for each in output.loss_fn_outputs]
        loss = -sum(float(inputs["weights"] @ logprobs_T) for logprobs_T in logprobs)  # no server says it in one way
        if len(logprobs) != case["datums"] or not np.isfinite(loss):
            raise AssertionError

    return await _measured(sample, train, case)


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    """The address of the server to ask."""
    if url is not None:
        yield url
        return
    os.environ.setdefault("TINKER_API_KEY", "tml-instant")
    command = [sys.executable, "-m", "benchmarks.instant_tinker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the server has no pipes")
        yield process.stdout.readline().strip()
        process.stdin.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of a real server; default: one that has every answer ready is started")
    parser.add_argument("--model", help="as the real server calls it")
    parser.add_argument("--concurrent", type=int, default=64, help="requests at a time, for one sample each")
    parser.add_argument("--datums", type=int, default=64, help="in a pass")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--json", help="also write the figures there")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(run(given.child)))
        return
    if given.base_url and not given.model:
        parser.error("--base-url needs --model: which model there")
    sides: dict[str, list[dict[str, float]]] = {"adapter": [], "bare": []}
    common = {name: getattr(given, name) for name in ("concurrent", "datums", "rounds")}
    with _server(given.base_url) as url:
        for _ in range(given.repeats):
            for side, found in sides.items():
                case = {"side": side, "url": url, "model": given.model or MODEL, **common}
                found.append(measuring.fresh("benchmarks.tinker_adapter", case))
    print(f"tinker {version('tinker')}, {given.base_url or 'a server that has every answer ready'}")
    rows = []
    for what in sides["bare"][0]:
        spent = [sorted(each[what] * 1e6 for each in sides[side]) for side in sides]
        shown = [f"{statistics.median(each):.0f} ({each[0]:.0f}-{each[-1]:.0f})" for each in spent]
        ratios = [ours[what] / bare[what] for ours, bare in zip(sides["adapter"], sides["bare"], strict=True)]
        rows.append((what, *shown, f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"))
    measuring.show("CPU microseconds, client side", ("for each", "tinker backend", "bare SDK", "ratio"), rows)
    measuring.save(given.json, sides)


if __name__ == "__main__":
    main()
