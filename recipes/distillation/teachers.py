"""The teacher of a recipe: which model, opened beside the student's, and held as it is while the student learns.

    async with open_teacher(config.teacher, directory / "teacher", ports, opened.renderer, ...) as teacher:
        KLPenalty(coef=1.0, to=teacher, centre=False)

A teacher scores the student's tokens as they are, so it must read the same ones: another size of the same family, an earlier checkpoint of the same model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from recipes.models import TINY, MakeTiny, ModelConfig, OpenedModel
from recipes.ports import Ports

if TYPE_CHECKING:
    from actors import ReferencePolicy
    from engine.rendering import Renderer

PROBES = ("What is 47 + 5?", "naïve — ½ of the “words”, 日本語, \t\n x==1;", " the quick brown fox")
"""Texts that two vocabularies must cut alike to count as the same."""


@attrs.frozen(kw_only=True)
class TeacherConfig(ModelConfig):
    """The teacher: a model of the student's vocabulary, of this machine or behind a server."""

    model: str = TINY
    """tiny (made here, and taught), smollm2, or a Hugging Face causal language model by name or path; on openai_compatible the server's name for it."""
    checkpoint: Path | None = None
    """A checkpoint of a run on that model, such as runs/x/checkpoints/000040, whose weights are the teacher's; None: the model as it is."""


Learn = Callable[[OpenedModel, Path], Awaitable[None]]
"""Teaches a tiny model what a teacher has to know; the path is where its run may be kept."""


@asynccontextmanager
async def open_teacher(
    config: TeacherConfig,
    directory: Path,
    ports: Ports,
    student: Renderer,
    *,
    seed: int,
    make_tiny: MakeTiny | None = None,
    learn: Learn | None = None,
) -> AsyncIterator[ReferencePolicy]:
    """The teacher's frozen weights, as a scorer and a policy. `learn`: what the tiny model is taught first.

    Raises ValueError where its vocabulary is not the student's.
    """
    from actors import ReferencePolicy

    async with ports.open_model(config, directory, seed=seed, make_tiny=make_tiny) as opened:
        check_same_tokens(student, opened.renderer, config.model)
        if config.checkpoint is not None:
            await opened.backend.load_state(_trainer_of(config.checkpoint)).result()
        elif config.model == TINY and learn is not None:
            await learn(opened, directory)
        teacher = ReferencePolicy(opened.backend, await opened.backend.snapshot().result())
        try:
            yield teacher
        finally:
            teacher.release()


def check_same_tokens(student: Renderer, teacher: Renderer, name: str) -> None:
    """Raises ValueError where the two cut text into other tokens: log-probabilities could not be compared token by token."""
    for text in PROBES:
        if student.vocabulary.encode(text) != teacher.vocabulary.encode(text):
            raise ValueError(
                f"the teacher {name} cuts text into other tokens than the student ({text!r} for one): it cannot score the student's answers token by token; "
                "take a teacher of the same family, or learn from its answers (distillation.off_policy_reasoning)"
            )


def _trainer_of(checkpoint: Path) -> Path:
    if not (checkpoint / "trainer").is_dir():
        raise ValueError(f"checkpoint {checkpoint} is none: there is no {checkpoint / 'trainer'}")
    return checkpoint / "trainer"
