"""The tasks of the package reasoning-gym as environments: made on the spot, seeded, at a difficulty that follows success; each is graded by its own scorer, in a worker with a
budget (extra `gym`).

    async with open_reasoning_tasks(renderer, ("chain_sum", "gcd"), group_size=8, curriculum=CurriculumConfig()) as groups:
        ...
"""

from __future__ import annotations

from envs.reasoning_tasks.curriculum import Curriculum, CurriculumConfig
from envs.reasoning_tasks.dataset import ReasoningGroups, groups, open_reasoning_tasks
from envs.reasoning_tasks.env import ReasoningEnv, ReasoningForm
from envs.reasoning_tasks.source import NotGenerated
from envs.reasoning_tasks.work import require_reasoning_gym

__all__ = [
    "Curriculum",
    "CurriculumConfig",
    "NotGenerated",
    "ReasoningEnv",
    "ReasoningForm",
    "ReasoningGroups",
    "groups",
    "open_reasoning_tasks",
    "require_reasoning_gym",
]
