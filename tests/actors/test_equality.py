"""The actors against a plain `for` loop: the same requests, the same datums, the same optimizer steps, in the same order.

The loop below is written from the definitions and shares no code with the actors beyond the rules that make them comparable (how seeds and problems
follow from the run's seed) and `engine.training`.
"""

from __future__ import annotations

import functools
from typing import Any

import attrs
import numpy as np
import pytest

from actors import RLSettings, RunResult, Schedule, train_rl
from engine.backends import AdamParams, Completion, Loss, ModelInput, SampleRequest, SamplingParams
from engine.backends.simulated import Constant, LogNormal, SamplerModel, SimulatedBackend, TrainerModel, Uniform
from engine.runtime.seeds import derive_seed
from engine.runtime.testing import simulate
from engine.training.assembly import assemble
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings
from tests.thoroughness import seeds

SEED = 5
PROBLEMS = 6
SIZE = 3
SAMPLING = SamplingParams(max_tokens=24)
ADAM = AdamParams(learning_rate=1e-3)
SETTINGS = RLSettings(rollout=RolloutSettings(SAMPLING), optimizer=ADAM, loss=Loss("importance_sampling"), seed=SEED)


def prompt_of(problem: int, member: int) -> ModelInput:
    return ModelInput.from_tokens([7, problem, member])


def reward_of(problem: int, completion: Completion, coarse: bool) -> float:
    """Depends on what was sampled. Coarse: so seldom that many groups are constant."""
    even = int(np.sum(completion.tokens % 2 == 0))
    return float(even > 15) if coarse else even / len(completion.tokens)


def follow_up(prompt: ModelInput, completion: Completion) -> ModelInput:
    return prompt.append(completion.tokens).append([8, 9])


class LoopEnv:
    def __init__(self, problem: int, member: int, turns: int, coarse: bool) -> None:
        self.problem, self.turns, self.coarse = problem, turns, coarse
        self.prompt = prompt_of(problem, member)

    async def reset(self) -> Observation:
        return Observation(self.prompt)

    async def step(self, completion: Completion) -> Step:
        reward = reward_of(self.problem, completion, self.coarse)
        self.turns -= 1
        if not self.turns:
            return Step(reward)
        self.prompt = follow_up(self.prompt, completion)
        return Step(reward, Observation(self.prompt))


@attrs.frozen
class LoopGroup(GroupBuilder):
    problem: int
    turns: int
    coarse: bool

    async def make_envs(self) -> list[Env]:
        return [LoopEnv(self.problem, member, self.turns, self.coarse) for member in range(SIZE)]


def problems(turns: int = 1, coarse: bool = False, count: int = PROBLEMS) -> list[GroupBuilder]:
    return [LoopGroup(problem, turns, coarse) for problem in range(count)]


def make_backend() -> SimulatedBackend:
    """Long tails, so that groups finish in another order than they began; every token depends on all training before it."""
    sampler = SamplerModel(
        length=Uniform(8, 24),
        seconds=LogNormal(mean=0.5, sigma=1.0, maximum=10.0),
        policy_dependent=True,
    )
    return SimulatedBackend(sampler, TrainerModel(per_call=0.2, optim_step=0.1), seed=1, record=True)


async def plain_loop(
    backend: SimulatedBackend,
    *,
    groups_per_step: int,
    steps: int,
    turns: int = 1,
    coarse: bool = False,
    size: int = PROBLEMS,
    epochs: int | None = None,
    learning_rate: Any = None,
) -> list[list[int]]:
    """Synchronous GRPO, as one would write it. Gives the tickets that each step trained."""
    ticket = 0
    trained = []
    for step in range(steps):
        snapshot = await backend.snapshot().result()
        groups: list[tuple[int, TrajectoryGroup]] = []
        while len(groups) < groups_per_step and (epochs is None or ticket < epochs * size):
            epoch, place = divmod(ticket, size)
            problem = int(np.random.default_rng(derive_seed(SEED, 1, epoch)).permutation(size)[place])
            group_seed = derive_seed(SEED, 2, ticket)
            members = []
            for member in range(SIZE):
                prompt, played = prompt_of(problem, member), []
                for turn in range(turns):
                    seed = derive_seed(derive_seed(group_seed, member), turn)
                    (completion,) = await backend.sample(snapshot, SampleRequest(prompt, SAMPLING, seed))
                    played.append(Turn(prompt, completion, reward_of(problem, completion, coarse)))
                    prompt = follow_up(prompt, completion)
                members.append(Trajectory(tuple(played)))
            group = TrajectoryGroup(tuple(members))
            if len(set(group.rewards_G)) > 1:
                groups.append((ticket, group))
            ticket += 1
        backend.release(snapshot)
        if not groups:
            break
        data = []
        for _, group in groups:
            data += assemble(group, group.rewards_G - group.rewards_G.mean())
        await backend.forward_backward(data, Loss("importance_sampling")).result()
        factor = learning_rate(step) if learning_rate else 1.0
        await backend.optim_step(attrs.evolve(ADAM, learning_rate=ADAM.learning_rate * factor)).result()
        trained.append([number for number, _ in groups])
    return trained


def run_loop(**options: Any) -> SimulatedBackend:
    backend = make_backend()
    simulate(functools.partial(plain_loop, backend, **options)).unwrap()
    return backend


def run_actors(
    schedule: Schedule, *, steps: int | None, seed: int, groups: list[GroupBuilder], settings: RLSettings = SETTINGS
) -> tuple[SimulatedBackend, RunResult]:
    backend = make_backend()

    async def program() -> RunResult:
        return await train_rl(backend, groups=groups, steps=steps, schedule=schedule, settings=settings)

    return backend, simulate(program, seed=seed).unwrap()


def optimizer_steps(backend: SimulatedBackend) -> list[Any]:
    assert backend.log is not None
    return [entry for entry in backend.log.training if entry.call == "optim_step"]


def datums(backend: SimulatedBackend) -> list[tuple[str, ...]]:
    assert backend.log is not None
    return [backend.log.trained(entry.version) for entry in optimizer_steps(backend)]


def requests(backend: SimulatedBackend) -> list[Any]:
    """By version, then by what was asked: which of a step's concurrent requests goes first is the scheduler's business."""
    assert backend.log is not None
    return sorted(backend.log.sampling, key=lambda entry: (entry.version, entry.seed))


SAME = {
    "sync": Schedule(groups_per_step=4),
    "streaming": Schedule(groups_per_step=4, minibatches=3),
    "async(0)": Schedule(groups_per_step=4, max_staleness=0, bound="soft", pin="turn"),
    "streaming(0), by turn": Schedule(groups_per_step=4, minibatches=4, pin="turn"),
}


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("mode", SAME)
def test_no_staleness_equals_the_loop(mode: str, turns: int) -> None:
    wanted = run_loop(groups_per_step=4, steps=5, turns=turns)
    for seed in seeds(3, 5):
        backend, result = run_actors(SAME[mode], steps=5, seed=seed, groups=problems(turns))
        assert requests(backend) == requests(wanted)
        assert optimizer_steps(backend) == optimizer_steps(wanted)
        # With minibatches a step's groups are submitted as they finish; without, in the loop's own order.
        if SAME[mode].minibatches == 1:
            assert datums(backend) == datums(wanted)
        else:
            assert [sorted(step) for step in datums(backend)] == [sorted(step) for step in datums(wanted)]
        assert backend._weights == wanted._weights  # the digest of every gradient and optimizer step
        assert all(row["staleness/max"] == 0 for row in result.rows)


@pytest.mark.parametrize("mode", SAME)
def test_filter_and_refill_equal_the_loop(mode: str) -> None:
    """Constant groups are replaced within the step, in the order of admission."""
    wanted = run_loop(groups_per_step=4, steps=4, coarse=True)
    plain = run_loop(groups_per_step=4, steps=4)
    assert len(requests(wanted)) > len(requests(plain))  # something was filtered
    backend, result = run_actors(SAME[mode], steps=4, seed=3, groups=problems(coarse=True))
    assert sum(row["groups/filtered"] for row in result.rows) > 0
    assert [row["groups/trained"] for row in result.rows] == [4] * 4
    # Refills are admitted one by one as groups are given back, so which tickets a step has follows from its own results alone.
    assert requests(backend) == requests(wanted)
    assert optimizer_steps(backend) == optimizer_steps(wanted)
    assert backend._weights == wanted._weights


@pytest.mark.parametrize("mode", SAME)
def test_ragged_last_step_is_trained(mode: str) -> None:
    wanted = run_loop(groups_per_step=4, steps=9, size=6, epochs=1)
    assert [len(step) // SIZE for step in datums(wanted)] == [4, 2]
    backend, result = run_actors(SAME[mode], steps=None, seed=2, groups=problems())
    assert requests(backend) == requests(wanted)
    assert optimizer_steps(backend) == optimizer_steps(wanted)
    assert backend._weights == wanted._weights
    assert [row["groups/trained"] for row in result.rows] == [4, 2]


def test_learning_rate_schedule_equals_the_loop() -> None:
    def halving(step: int) -> float:
        return 0.5**step

    wanted = run_loop(groups_per_step=4, steps=4, learning_rate=halving)
    settings = attrs.evolve(SETTINGS, learning_rate=halving)
    backend, result = run_actors(SAME["sync"], steps=4, seed=0, groups=problems(), settings=settings)
    assert optimizer_steps(backend) == optimizer_steps(wanted)
    assert backend._weights == wanted._weights
    assert [row["optim/lr"] for row in result.rows] == [1e-3 * 0.5**step for step in range(4)]


def centred_over_step(groups: Any) -> list[np.ndarray]:
    """Every group's rewards less the mean of the whole step's."""
    mean = np.mean(np.concatenate([group.rewards_G for group in groups]))
    return [group.rewards_G - mean for group in groups]


@pytest.mark.parametrize(
    "advantages", ["centred", "grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline", centred_over_step]
)
def test_minibatches_do_not_change_the_gradient(advantages: Any) -> None:
    """Whether an advantage looks at a group or at the whole step: the weights after every step are the same."""
    settings = attrs.evolve(SETTINGS, advantages=advantages)
    weights = set()
    sizes = []
    for minibatches in (1, 2, 5):
        schedule = Schedule(groups_per_step=5, minibatches=minibatches)
        backend, _ = run_actors(schedule, steps=4, seed=minibatches, groups=problems(), settings=settings)
        weights.add(backend._weights)
        assert backend.log is not None
        calls = [entry.call for entry in backend.log.training]
        assert calls.count("forward_backward") == 4 * minibatches
        assert calls.count("optim_step") == 4
        sizes.append(next(len(entry.datums) for entry in backend.log.training if entry.call == "forward_backward"))
    assert len(weights) == 1
    assert sizes == [15, 9, 3]


def test_the_loop_can_tell() -> None:
    """That the comparisons above can fail: one reward off changes the weights."""
    backend, _ = run_actors(SAME["sync"], steps=3, seed=0, groups=problems())
    assert backend._weights != run_loop(groups_per_step=4, steps=3, learning_rate=lambda step: 1.0 + step)._weights
    assert backend._weights != run_loop(groups_per_step=3, steps=3)._weights
    assert make_backend()._model.seconds != Constant(0.0)
