"""On-policy distillation: the student answers, the teacher says of every token how likely it finds it, and that is the reward.

    python -m recipes.distillation.on_policy                                           # two minutes on two CPU cores: a tiny pupil and a tiny teacher
    python -m recipes.distillation.on_policy --model Qwen/Qwen3-0.6B --teacher.model Qwen/Qwen3-4B --dataset owner/prompts
    python -m recipes.distillation.on_policy --model ... --teacher.backend openai_compatible --teacher.model ... --teacher.base-url http://host:8000/v1 --data prompts.jsonl

Every sampled token's advantage is −coef·(log π_student − log π_teacher): the reverse KL, by the student's own samples, in the RL program as it is
(`actors.train_rl`). The teacher scores a group as soon as it is played, beside sampling and training. Without data, the student is the pupil of
`recipes.rl_loop`, who forgets to carry, and the teacher one who does not. What this recipe leaves out: teachers of another vocabulary (learn from their answers
instead: `recipes.distillation.off_policy_reasoning`), several teachers (`recipes.distillation.multi_teacher`).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from recipes import cli, runs
from recipes.distillation.distilling import FOR_REAL_MODELS, DistillationConfig, distil
from recipes.distillation.problems import load_problems
from recipes.distillation.teachers import TeacherConfig, open_teacher
from recipes.models import TINY, OpenedModel
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import ReferencePolicy, RunResult, StopRequest


@attrs.frozen(kw_only=True)
class Config(DistillationConfig):
    """On-policy distillation. Without flags: a tiny pupil who forgets to carry learns from a tiny teacher who does not, in two minutes on two CPU cores."""

    teacher: TeacherConfig = attrs.field(factory=TeacherConfig)
    """The teacher."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the distillation began."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from recipes.distillation.telling import kl_learnt

    directory = runs.begin(config, "on_policy")
    stop = StopRequest()
    result = None
    async with cli.stop_on_interrupt(stop), _open(config, directory, ports, stop) as (student, teacher):
        problems = await offload(load_problems, config, ports.load_rows, student.renderer)
        if not stop.requested:
            result = await distil(config, directory, student, problems, teacher, "on_policy", stop)
    runs.tell(directory, result, "recipes.distillation.on_policy", learnt=kl_learnt)
    return result


@asynccontextmanager
async def _open(
    config: Config, directory: Path, ports: Ports, stop: StopRequest
) -> AsyncIterator[tuple[OpenedModel, ReferencePolicy]]:
    """Student and teacher, as they are when the distillation begins."""
    from recipes.distillation.pupils import FORGETS, taught_sums

    async def learn(opened: OpenedModel, path: Path, forgets: float = 0.0, seed: int = config.seed + 1) -> None:
        await taught_sums(
            opened,
            path,
            config.difficulty,
            config.warm_up,
            forgets=forgets,
            seed=seed,
            resume=config.resume,
            stop=stop,
        )

    async with (
        ports.open_model(config, directory, seed=config.seed) as student,
        open_teacher(
            config.teacher, directory / "teacher", ports, student.renderer, seed=config.seed + 1, learn=learn
        ) as teacher,
    ):
        if config.model == TINY:
            await learn(student, directory, FORGETS, config.seed)
        yield student, teacher


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
