"""On-policy distillation from several teachers: each scores the answers to the prompts of its own tag.

    python -m recipes.distillation.multi_teacher                 # two tiny teachers, one for sums and one for differences; one pupil learns from both
    python -m recipes.distillation.multi_teacher --model Qwen/Qwen3-0.6B \\
        --teachers math=Qwen/Qwen3-4B chat=Qwen/Qwen3-8B@http://host:8000/v1 --prompts math=deepmath chat=chats.jsonl

As `recipes.distillation.on_policy` otherwise. The KL to each teacher is told by tag. What this recipe leaves out: several teachers for one prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

from envs.arithmetic import Difficulty
from recipes import cli, runs
from recipes.distillation.distilling import FOR_REAL_MODELS, DistillationConfig, distil
from recipes.distillation.problems import ProblemConfig, load_problems
from recipes.distillation.teachers import TeacherConfig, open_teacher
from recipes.models import TINY, OpenedModel
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import ReferencePolicy, RunResult, StopRequest
    from engine.data import LoadRows
    from engine.rendering import Renderer
    from envs.arithmetic import Operation
    from envs.contracts import GroupDataset

MADE = ("add", "subtract")
"""Tags of the problems that are made here."""


@attrs.frozen(kw_only=True)
class Config(DistillationConfig):
    """Distillation from several teachers by tag. Without flags: a tiny pupil learns sums from one tiny teacher and differences from another."""

    teachers: tuple[str, ...] = ()
    """<tag>=<model>, or <tag>=<model>@<address> for one behind a server with OpenAI's API; none: two tiny ones, made here."""
    prompts: tuple[str, ...] = ()
    """<tag>=<prompts>, a data set by name or a local file, for each of the teachers' tags."""
    difficulty: Difficulty = attrs.field(
        factory=lambda: Difficulty(operations=("add", "subtract"), digits=2, digits_right=1, carry=1.0)
    )
    """Which sums and differences are made where no teachers are named."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny models first take."""
    steps: int = attrs.field(default=40, validator=attrs.validators.ge(1))
    """Optimizer steps."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        teachers, prompts = by_tag("teachers", self.teachers), by_tag("prompts", self.prompts)
        if teachers.keys() != prompts.keys():
            raise ValueError(
                f"prompts must be given for the tags of --teachers: those have {', '.join(teachers) or 'none'}, --prompts {', '.join(prompts) or 'none'}"
            )
        if self.data is not None or self.dataset is not None:
            raise ValueError("prompts says the data of every tag; --data and --dataset have no use here")


def by_tag(field: str, entries: tuple[str, ...]) -> dict[str, str]:
    """`tag=value` entries as a mapping. Raises ValueError, naming the field, for one that is no such thing or is there twice."""
    found: dict[str, str] = {}
    for entry in entries:
        tag, equals, value = entry.partition("=")
        if not (tag and equals and value):
            raise ValueError(f"{field} wants entries like math=something, not {entry!r}")
        if tag in found:
            raise ValueError(f"{field} has the tag {tag!r} twice")
        found[tag] = value
    return found


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the distillation began."""
    from actors import ScorersByTag, StopRequest
    from engine.runtime.offload import offload
    from recipes.distillation.telling import kl_learnt

    directory = runs.begin(config, "multi_teacher")
    stop = StopRequest()
    result = None
    async with cli.stop_on_interrupt(stop), AsyncExitStack() as opened:
        student = await opened.enter_async_context(ports.open_model(config, directory, seed=config.seed))
        teachers = await _open_teachers(config, directory, ports, student.renderer, opened, stop)
        if config.model == TINY:
            await _learn(config, student, directory, config.difficulty, 0, stop)
        problems = await offload(_problems, config, ports.load_rows, student.renderer)
        if not stop.requested:
            scorers = ScorersByTag(teachers)
            result = await distil(config, directory, student, problems, scorers, "multi_teacher", stop)
    tags = tuple(by_tag("teachers", config.teachers)) or MADE
    runs.tell(directory, result, "recipes.distillation.multi_teacher", learnt=lambda path: kl_learnt(path, tags))
    return result


async def _open_teachers(
    config: Config, directory: Path, ports: Ports, student: Renderer, opened: AsyncExitStack, stop: StopRequest
) -> Mapping[str, ReferencePolicy]:
    """The teacher of each tag."""
    named = by_tag("teachers", config.teachers) or dict.fromkeys(MADE, TINY)
    teachers = {}
    for number, (tag, entry) in enumerate(named.items(), 1):
        model, _, address = entry.partition("@")
        teacher = TeacherConfig(
            model=model,
            backend="openai_compatible" if address else "local",
            base_url=address or None,
            renderer=config.renderer,
            dtype=config.dtype,
            threads=config.threads,
        )

        async def learn(opened: OpenedModel, path: Path, tag: str = tag, number: int = number) -> None:
            await _learn(config, opened, path, _only(config.difficulty, tag), number, stop)

        teachers[tag] = await opened.enter_async_context(
            open_teacher(teacher, directory / "teachers" / tag, ports, student, seed=config.seed + number, learn=learn)
        )
    return teachers


async def _learn(
    config: Config, opened: OpenedModel, path: Path, difficulty: Difficulty, number: int, stop: StopRequest
) -> None:
    """What a tiny model is taught first: number 0 is the pupil, who forgets to carry."""
    from recipes.distillation.pupils import FORGETS, taught_sums

    await taught_sums(
        opened,
        path,
        difficulty,
        config.warm_up,
        forgets=0.0 if number else FORGETS,
        seed=config.seed + number,
        resume=config.resume,
        stop=stop,
    )


def _problems(config: Config, load: LoadRows, renderer: Renderer) -> tuple[GroupDataset, GroupDataset | None]:
    """The problems of every tag as one dataset, and those held out."""
    from envs.prompts import JoinedGroups

    shared = {field.name: getattr(config, field.name) for field in attrs.fields(ProblemConfig)}
    parts = {}
    for tag, source in (by_tag("prompts", config.prompts) or dict.fromkeys(MADE, "")).items():
        if not source:
            own: dict[str, Any] = {"difficulty": _only(config.difficulty, tag)}
        else:
            own = {"data": Path(source)} if Path(source).exists() else {"dataset": source}
        parts[tag] = load_problems(ProblemConfig(**{**shared, **own}), load, renderer)
    held_out = {tag: held for tag, (_, held) in parts.items() if held is not None}
    return JoinedGroups({tag: groups for tag, (groups, _) in parts.items()}), JoinedGroups(
        held_out
    ) if held_out else None


def _only(difficulty: Difficulty, tag: str) -> Difficulty:
    """The problems of one of the tags in MADE."""
    return attrs.evolve(difficulty, operations=(cast("Operation", tag),))


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
