"""tinker-cookbook's own RL loops on an in-process stand-in for its service. One process, one run, one JSON line.

Runs in an interpreter of its own, which has `tinker` and `tinker-cookbook` and need not have this project installed:

    python -m venv peer && peer/bin/pip install torch==2.13.0 tinker==0.25.0 tinker-cookbook==0.5.6
    peer/bin/python benchmarks/peers/tinker_cookbook_loop.py --mode sync --groups 64 --size 16 --steps 6

The stand-in gives seeded completions at once, or holds each of `--slots` for as long as a completion takes, in front of a serial trainer. CPU time
is read at the end of each step; the first step (imports, caches) is left out of the figures. `--src` takes a newer line from an unpacked wheel.
"""

# ruff: noqa: E402, ARG002  (sys.path and the environment must be set before the peer is imported; the signatures are the peer's)
# mypy: ignore-errors

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import itertools
import json
import os
import resource
import selectors
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TINKER_TELEMETRY="0")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workload import TOKENS, Workload

MODEL = "meta-llama/Llama-3.1-8B"


def arguments() -> argparse.Namespace:
    """The run to make."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["sync", "streaming", "async"], default="sync")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0, help="mean duration of a completion")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--trainer-seconds", type=float, default=0.0, help="of a whole step")
    parser.add_argument("--virtual", action="store_true", help="let simulated time pass as soon as everything waits")
    parser.add_argument("--no-gc", action="store_true")
    parser.add_argument("--src", default="", help="directory of an unpacked wheel to use in place of the installed one")
    return parser.parse_args()


ARGS = arguments()
if ARGS.src:
    sys.path.insert(0, ARGS.src)

import chz
import numpy as np
import tinker
from tinker import types
from tinker_cookbook.rl import train
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, RLDatasetBuilder, StepResult
from tinker_cookbook.tokenizer_utils import register_tokenizer

NEEDS_SEQUENCE_ID = "sequence_id" in inspect.signature(types.SampledSequence).parameters  # from SDK 0.26 on


class VirtualSelector(selectors.DefaultSelector):
    """Waits for nothing but threads: where the loop would sleep, its clock is set forward."""

    loop = None

    def select(self, timeout=None):
        events = super().select(0)
        if events or timeout is None or timeout <= 0:
            return events if events or timeout == 0 else super().select(timeout)
        if self.loop.in_threads:
            return super().select(0.05)
        self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock of its own, for schedules that are not to depend on how busy the machine is."""

    def __init__(self):
        self.now, self.in_threads = 0.0, 0
        selector = VirtualSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.now

    def run_in_executor(self, executor, func, *args):
        future = super().run_in_executor(executor, func, *args)
        self.in_threads += 1
        future.add_done_callback(self._back)
        return future

    def _back(self, _):
        self.in_threads -= 1


def now():
    """The running loop's time."""
    return asyncio.get_running_loop().time()


class Bytes:
    """A tokenizer of bytes, for the peer's samples on the screen."""

    name_or_path = MODEL
    bos_token, eos_token, eos_token_id = "<s>", "</s>", 0

    def encode(self, text, add_special_tokens=False, **_):
        return [*text.encode()]

    def decode(self, ids, **_):
        ids = [ids] if isinstance(ids, int) else ids
        return bytes(int(i) % 256 for i in ids).decode("latin-1")

    def convert_ids_to_tokens(self, token):
        return self.decode(token)


class PeerEnv(Env):
    """The workload's episode in the peer's terms."""

    def __init__(self, work, batch, group, member):
        self.work, self.place, self.turn = work, (batch, group, member), 0

    async def initial_observation(self):
        self.tokens = self.work.prompt(*self.place)
        return tinker.ModelInput.from_ints(self.tokens), []

    async def step(self, action, *, extra=None):
        self.turn += 1
        done = self.turn >= self.work.turns
        if not done:
            self.tokens = [*self.tokens, *action, *TOKENS[: self.work.env_tokens].tolist()]
        return StepResult(
            reward=self.work.reward(*self.place) if done else 0.0,
            episode_done=done,
            next_observation=tinker.ModelInput.empty() if done else tinker.ModelInput.from_ints(self.tokens),
            next_stop_condition=[],
            metrics={"correct": 1.0} if done else {"turn": float(self.turn)},
        )


class PeerGroup(EnvGroupBuilder):
    """The workload's group in the peer's terms."""

    def __init__(self, work, batch, group):
        self.work, self.batch, self.group = work, batch, group

    async def make_envs(self):
        return [PeerEnv(self.work, self.batch, self.group, member) for member in range(self.work.size)]

    def logging_tags(self):
        return ["workload"]


class PeerDataset(RLDataset):
    """The workload's batches in the peer's terms."""

    def __init__(self, work, batches):
        self.work, self.batches = work, batches

    def get_batch(self, index):
        return [PeerGroup(self.work, index, group) for group in range(self.work.groups)]

    def __len__(self):
        return self.batches


@chz.chz
class PeerDatasetBuilder(RLDatasetBuilder):
    """Makes the dataset."""

    work: Workload
    batches: int

    async def __call__(self):
        return PeerDataset(self.work, self.batches), None


class Service:
    """Stands for tinker.ServiceClient and its clients: counts what is asked, and lets time pass where the run wants it."""

    def __init__(self, args, work):
        self.work = work
        self.slots = asyncio.Semaphore(args.slots) if args.slots else None
        self.trainer_seconds = args.trainer_seconds
        self.version = 0
        self.first_request = None
        self.samples = self.tokens = self.datums = 0
        self.in_flight = self.peak_in_flight = 0
        self.steps_done, self.cpu_marks = [], []
        self.staleness = []
        self.sampled_at = {}

    def __call__(self, *_, **__):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    async def create_lora_training_client_async(self, *_, **__):
        return Trainer(self)

    async def create_lora_training_client(self, *_, **__):
        return Trainer(self)

    def create_sampling_client(self, *_, **__):
        return Sampler(self, self.version)

    def note_step(self):
        """An optimizer step is done."""
        self.version += 1
        self.steps_done.append(now())
        self.cpu_marks.append(time.process_time())


class Waitable:
    """A future of the SDK, by the two ways in which the peer waits for it."""

    def __init__(self, task):
        self._task = task

    async def result_async(self, timeout=None):
        return await self._task

    def __await__(self):
        return self._task.__await__()


class Sampler:
    """A sampling client at one version."""

    def __init__(self, service, version):
        self.service, self.version = service, version

    def result(self, timeout=None):
        return self

    async def result_async(self, timeout=None):
        return self

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self

    async def sample_async(self, prompt, num_samples=1, sampling_params=None, **_):
        service, work = self.service, self.service.work
        if service.first_request is None:
            service.first_request = now()
        asked = prompt.chunks[0].tokens
        batch, group, member = asked[0], asked[1], asked[2]
        turn = work.turn_of(len(asked)) if work.turns > 1 else 0
        tokens, logprobs, seconds = work.completion(batch, group, member, turn)
        service.sampled_at.setdefault((batch, group), self.version)
        if seconds == 0.0:
            await asyncio.sleep(0)
        elif service.slots is None:
            await asyncio.sleep(seconds)
        else:
            async with service.slots:
                service.in_flight += 1
                service.peak_in_flight = max(service.peak_in_flight, service.in_flight)
                await asyncio.sleep(seconds)
                service.in_flight -= 1
        service.samples += 1
        service.tokens += len(tokens)
        named = {"sequence_id": f"s{service.samples}"} if NEEDS_SEQUENCE_ID else {}
        sequence = types.SampledSequence(stop_reason="stop", tokens_np=tokens, logprobs_np=logprobs, **named)
        return types.SampleResponse(sequences=[sequence])

    sample = sample_async


class Trainer:
    """A training client: a queue of one worker."""

    def __init__(self, service):
        self.service = service
        self.last = None

    def _submit(self, seconds, outcome):
        before = self.last

        async def work():
            if before is not None:
                await before
            await asyncio.sleep(seconds)
            return outcome()

        self.last = asyncio.ensure_future(work())
        return Waitable(self.last)

    def forward_backward(self, data, *_, **__):
        service = self.service
        service.datums += len(data)
        for datum in data:
            prompt = datum.model_input.chunks[0].tokens
            service.staleness.append(service.version - service.sampled_at[prompt[0], prompt[1]])
        share = len(data) / (service.work.groups * service.work.size)

        def outcome():
            outputs = [
                {"logprobs": types.TensorData.from_numpy(d.loss_fn_inputs["logprobs"].to_numpy() - np.float32(0.01))}
                for d in data
            ]
            return types.ForwardBackwardOutput(
                loss_fn_output_type="TorchLossReturn", loss_fn_outputs=outputs, metrics={}
            )

        return self._submit(0.8 * service.trainer_seconds * share, outcome)

    def optim_step(self, *_, **__):
        def outcome():
            self.service.note_step()
            return types.OptimStepResponse()

        return self._submit(0.1 * self.service.trainer_seconds, outcome)

    async def forward_backward_async(self, data, *_, **__):
        return self.forward_backward(data)

    async def optim_step_async(self, *_, **__):
        return self.optim_step()

    async def save_weights_and_get_sampling_client_async(self, *_, **__):
        await self._submit(0.1 * self.service.trainer_seconds, lambda: None)
        return Sampler(self.service, self.service.version)

    save_weights_and_get_sampling_client = save_weights_and_get_sampling_client_async

    def save_state(self, name, **_):
        return self._submit(0.0, lambda: Saved(f"tinker://stand-in/weights/{name}"))

    def save_weights_for_sampler(self, name, **_):
        saved = Saved(f"tinker://stand-in/sampler_weights/{name}")
        return self._submit(0.1 * self.service.trainer_seconds, lambda: saved)

    async def save_state_async(self, name, **_):
        return self.save_state(name)

    async def save_weights_for_sampler_async(self, name, **_):
        return self.save_weights_for_sampler(name)

    def create_sampling_client(self, *_, **__):
        return Sampler(self.service, self.service.version)


class Saved:
    """What saving answers."""

    def __init__(self, path):
        self.path = path


def configuration(args, work, log_path):
    """The peer's own, with its defaults wherever the run does not say otherwise."""
    mode = {}
    if args.mode == "async":
        mode["async_config"] = train.AsyncConfig(max_steps_off_policy=args.staleness, groups_per_batch=args.groups)
    elif args.mode == "streaming":
        mode["stream_minibatch_config"] = train.StreamMinibatchConfig(
            groups_per_batch=args.groups, num_minibatches=args.minibatches
        )
    return train.Config(
        learning_rate=1e-5,
        dataset_builder=PeerDatasetBuilder(work=work, batches=args.steps),
        model_name=MODEL,
        recipe_name="benchmark",
        max_tokens=work.max_tokens,
        log_path=log_path,
        **mode,
    )


def report(args, service, before_mb, log_path):
    """The line that is printed."""
    marks, peak = service.cpu_marks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    episodes = args.groups * args.size
    rows = (Path(log_path) / "metrics.jsonl").read_text().splitlines()
    return {
        "system": "tinker-cookbook",
        "mode": args.mode,
        "groups": args.groups,
        "size": args.size,
        "turns": args.turns,
        "gc": not args.no_gc,
        "staleness": args.staleness if args.mode == "async" else 0,
        "steps_trained": len(service.steps_done),
        "rows": len(rows),
        "samples": service.samples,
        "datums": service.datums,
        "groups_wasted": (service.samples - service.datums) / args.size if args.turns == 1 else None,
        "cpu_us": [1e6 * (b - a) / (episodes * args.turns) for a, b in itertools.pairwise(marks)],
        "before_mb": before_mb,
        "peak_mb": peak,
        # Up to the last optimizer step, and the publishing of its weights.
        "makespan": service.steps_done[-1] + 0.1 * args.trainer_seconds - service.first_request,
        "staleness_mean": float(np.mean(service.staleness)) if service.staleness else None,
        "staleness_max": max(service.staleness, default=None),
        "peak_in_flight": service.peak_in_flight,
    }


def main():
    args = ARGS
    work = Workload(args.seed, args.groups, args.size, args.turns, mean_seconds=args.seconds)
    register_tokenizer(MODEL, Bytes)
    if args.no_gc:
        gc.disable()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out = sys.stdout

    async def run():
        tinker.ServiceClient = service = Service(args, work)
        await train.main(configuration(args, work, log_path))
        return service

    with tempfile.TemporaryDirectory() as log_path, Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            with asyncio.Runner(loop_factory=VirtualLoop if args.virtual else None) as runner:
                service = runner.run(run())
        except BaseException:
            sys.stdout = sys.stderr = sys.__stderr__
            raise
        sys.stdout = out
        print(json.dumps(report(args, service, before, log_path)), flush=True)


if __name__ == "__main__":
    main()
