"""A model as a judge, by flags: any model that can be opened here, or one behind a server; `--judge.model NAME --judge.backend openai_compatible`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from recipes.models import ModelConfig
from recipes.ports import Ports

if TYPE_CHECKING:
    from engine.completion import Completer
    from envs.grading.judges import Judge, JudgeSettings

NONE = "none"
OnFailure = Literal["error", "skip"]
_at_least_one: Any = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class JudgeConfig(ModelConfig):
    """A model as a judge."""

    model: str = NONE
    """The judge: smollm2, or a Hugging Face causal language model by name or path, or what the server calls it; none: no model is asked."""
    max_tokens: int = attrs.field(default=512, validator=_at_least_one)
    """Longest reply of the judge, reasons included, in tokens."""
    temperature: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Sampling temperature of the judge's first reply; further attempts have at least 0.7."""
    attempts: int = attrs.field(default=3, validator=_at_least_one)
    """How often a verdict is asked for, each time with another seed, where there is none in the reply."""
    concurrency: int = attrs.field(default=32, validator=_at_least_one)
    """Most questions to the judge at once."""
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))
    """Most seconds of a reply; None: no limit."""
    cache: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Replies that are remembered, so that the same question is not asked twice; 0: none."""
    on_failure: OnFailure = "error"
    """What becomes of a verdict that did not come. error: its group fails, and is played again twice. skip: it is left out and counted."""

    @property
    def wanted(self) -> bool:
        """Whether a judge was named."""
        return self.model != NONE

    def settings(self, seed: int) -> JudgeSettings:
        """How the judge is asked."""
        from envs.grading.judges import JudgeSettings

        return JudgeSettings(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            attempts=self.attempts,
            concurrency=self.concurrency,
            timeout=self.timeout,
            cache=self.cache,
            seed=seed,
        )


@asynccontextmanager
async def open_judge(config: JudgeConfig, directory: Path, ports: Ports, *, seed: int) -> AsyncIterator[Judge]:
    """The judge that the flags name, open while the block runs."""
    async with ports.open_completer(config, directory / "judge", seed=seed) as completer:
        yield judge_of(config, completer, seed=seed)


def judge_of(config: JudgeConfig, completer: Completer, *, seed: int) -> Judge:
    """A judge on a completer of one's own, asked as the flags say."""
    from envs.grading.judges import Judge

    return Judge(completer, config.settings(seed), name="the judge")
