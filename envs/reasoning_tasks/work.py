"""What worker processes do for the tasks of the package reasoning-gym: describe, generate, score. It is imported there, and nowhere else (it takes seconds)."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from envs.reasoning_tasks.guarded import nothing_evaluated


@attrs.frozen
class Description:
    """A task, as its package has it."""

    name: str
    levels: int
    """Levels of difficulty: of the attribute that has most of those that move. 1: it has no curriculum."""
    attributes: tuple[str, ...]
    """What makes it easier or harder."""


@attrs.frozen
class Variant:
    """A task at a level of difficulty."""

    name: str
    level: int | None = None
    """None: the task's own default configuration."""
    moves: tuple[str, ...] = ()
    """Attributes that follow the level; the others stay at their lowest. Empty: all."""
    inclusive: bool = True
    """Easier problems come, too; otherwise only those of the level."""
    options: str = "{}"
    """Fields of the task's configuration that are set, as JSON."""


@attrs.frozen
class Item:
    """A problem."""

    question: str
    answer: str | None
    """None: there is not one right answer, and only the task's own scorer knows."""
    entry: bytes
    """The whole entry, pickled in the worker, and unpickled in a worker only."""


def require_reasoning_gym() -> None:
    """Raises ImportError, saying what to install."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ImportError("these tasks need reasoning-gym: pip install 'callsheet[gym]'")


def warm_up() -> None:
    """Imports the package."""
    import reasoning_gym  # noqa: F401


def names() -> list[str]:
    """All tasks."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def describe(name: str, moves: Sequence[str] = ()) -> Description | str:
    """A task, or what is wrong with its name or with those of its attributes."""
    from reasoning_gym.factory import CURRICULA, DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(DATASETS))}"
        return f"reasoning-gym has no task {name!r}{hint}"
    if name not in CURRICULA:
        return Description(name, 1, ()) if not moves else f"the task {name!r} has no attributes that could move"
    attributes = CURRICULA[name]().attributes
    unknown = [each for each in moves if each not in attributes]
    if unknown:
        return f"the task {name!r} has no attribute {unknown[0]!r}; there are {', '.join(attributes)}"
    most = max((len(attributes[each].levels) for each in moves or attributes), default=1)
    return Description(name, most, tuple(attributes))


def generate(variant: Variant, seed: int, size: int, wanted: Sequence[int]) -> list[Item]:
    """Problems number `wanted` of the `size` that follow from the seed."""
    dataset = _dataset(variant, seed, size)
    found = []
    for index in wanted:
        entry = dataset[index]
        answer = entry["answer"]
        found.append(
            Item(str(entry["question"]), None if answer is None else str(answer), pickle.dumps(entry, protocol=5))
        )
    return found


def score(variant: Variant, entry: bytes, answer: str) -> tuple[float, str]:
    """What the task's own scorer gives, from 0 to 1, and how. Nothing of the answer is evaluated; one that the scorer cannot read is wrong."""
    dataset = _dataset(variant, 0, 1)
    content = pickle.loads(entry)  # noqa: S301  (made by `generate`)
    if str(content["answer"]) in _TRUTHS and answer.strip(" .").casefold() not in _SAYS_TRUTH:
        return 0.0, "it is neither true nor false"  # some scorers take whatever is not true for false
    try:
        with nothing_evaluated():
            given = float(dataset.score_answer(answer, content))
    except Exception as error:  # noqa: BLE001  (not all scorers expect an answer of the wrong form)
        return 0.0, f"the task's scorer cannot read it: {type(error).__name__}"
    given = min(1.0, max(0.0, given)) if math.isfinite(given) else 0.0
    return given, f"scored {given:g} by the task's own scorer"


_TRUTHS = ("True", "False")
_SAYS_TRUTH = ("true", "false", "yes", "no")


@functools.lru_cache(maxsize=32)
def _dataset(variant: Variant, seed: int, size: int) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    options = json.loads(variant.options)
    if variant.level is None:
        return create_dataset(variant.name, seed=seed, size=size, **options)
    config = _configuration(variant, {**options, "seed": seed, "size": size})
    return DATASETS[variant.name][0](config=config)


def _configuration(variant: Variant, defaults: Mapping[str, Any]) -> Any:
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA

    curriculum = CURRICULA[variant.name]()
    for name, attribute in curriculum.attributes.items():
        follows = not variant.moves or name in variant.moves
        level = min(variant.level or 0, len(attribute.levels) - 1) if follows else 0
        curriculum.set_attr_level(name, level)
    mode = RangeAttributeMode.INCLUSIVE if variant.inclusive else RangeAttributeMode.UPPER_BOUND
    config = curriculum.generate_configuration(dict(defaults), context=DefaultCurriculumContext(mode))
    for name, value in json.loads(variant.options).items():  # what was set by hand stands above the level
        setattr(config, name, value)
    if hasattr(config, "validate"):
        config.validate()
    return config
