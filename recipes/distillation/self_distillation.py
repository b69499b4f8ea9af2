"""Self-distillation: the teacher is the model itself, with more in its prompt. The student answers the plain question; the same weights, shown the answer
or a hint in front of it, say how likely they find each of its tokens.

    python -m recipes.distillation.self_distillation                             # a tiny pupil who takes hints learns to do without
    python -m recipes.distillation.self_distillation --model Qwen/Qwen3-0.6B --dataset gsm8k
    python -m recipes.distillation.self_distillation --model ... --data problems.jsonl --hint "The answer is {answer}. {question}"

The rows are problems with a question and an answer (`engine.data.read_problems`); `--hint` says how both are put before the teacher. Answers that follow from the
hint and not from the question teach nothing that holds without it, so the hint should help and not dictate. `--to newest` follows the weights as they learn;
`--to initial` stays with those that the run began with. What this recipe leaves out: hints that come from somewhere else than a row.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Literal

import attrs

from recipes import cli, runs
from recipes.distillation.distilling import FOR_REAL_MODELS, DistillationConfig, distil
from recipes.distillation.problems import load_hinted
from recipes.models import TINY
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult


@attrs.frozen(kw_only=True)
class Config(DistillationConfig):
    """Self-distillation from hints. Without flags: a tiny pupil who forgets to carry, but takes a hint, learns to do without it, in two minutes on two CPU cores."""

    to: Literal["initial", "newest"] = "initial"
    """Whose weights read the hint: those that the run began with, or the newest when an answer was given."""
    hint: str = "Hint: {answer}. {question}"
    """What the teacher is asked, made of a problem's question, answer and solution."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        try:
            self.hint.format(question="", answer="", solution="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"hint may hold {{question}}, {{answer}} and {{solution}}, not {error}") from None


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the distillation began."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from recipes.distillation.pupils import conversations, takes_hints
    from recipes.distillation.telling import kl_learnt
    from recipes.warm_up import warm_up

    directory = runs.begin(config, "self_distillation")
    stop = StopRequest()
    result = None
    async with cli.stop_on_interrupt(stop), ports.open_model(config, directory, seed=config.seed) as student:
        if config.model == TINY and config.warm_up:
            pupil = partial(takes_hints, config.difficulty, config.hint, config.seed)
            batches = conversations(student, config.warm_up, pupil)
            await warm_up(student, directory, batches, resume=config.resume, stop=stop)
        problems = await offload(load_hinted, config, config.hint, ports.load_rows, student.renderer)
        if not stop.requested:
            result = await distil(
                config, directory, student, problems, config.to, "self_distillation", stop, privileged=True
            )
    runs.tell(directory, result, "recipes.distillation.self_distillation", learnt=kl_learnt)
    return result


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
