"""Reasoning-gym's tasks: the curriculum by hand, readers that evaluate nothing, and the environment where the package is installed (`pip install 'callsheet[gym]'`)."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.rendering import get_renderer
from envs import conformance
from envs.contracts import GroupDataset
from envs.reasoning_tasks import Curriculum, CurriculumConfig, ReasoningForm, open_reasoning_tasks
from envs.reasoning_tasks.env import final_answer
from envs.reasoning_tasks.guarded import LONGEST, Refused, formula, literal
from recipes.tiny import make_tokenizer

installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed: pip install 'callsheet[gym]'",
)
renderer = get_renderer("role_colon", make_tokenizer())


@pytest.fixture
def anyio_backend() -> str:
    """Worker processes want a real clock."""
    return "asyncio"


# ---- the curriculum


def test_levels_follow_success_and_what_was_handed_out_keeps_its_own() -> None:
    curriculum = Curriculum(CurriculumConfig(window=2, raise_at=0.8, lower_at=0.2), {"a": 2, "b": 0})
    assert [curriculum.hand_out("a", index) for index in range(4)] == [0, 0, 0, 0]
    curriculum.observe("a", 0, 1.0)
    assert curriculum.levels["a"] == 0  # one group is no window
    curriculum.observe("a", 1, 0.6)  # mean 0.8
    assert curriculum.levels == {"a": 1, "b": 0}
    assert [curriculum.hand_out("a", index) for index in (3, 4, 5)] == [0, 1, 1]
    curriculum.observe("a", 2, 0.0)  # of the old level: it says nothing of the new one
    curriculum.observe("a", 3, 0.0)
    assert curriculum.levels["a"] == 1
    curriculum.observe("a", 4, 0.4)
    curriculum.observe("a", 5, 0.0)  # mean 0.2
    assert curriculum.levels["a"] == 0
    assert (curriculum.hand_out("a", 5), curriculum.hand_out("a", 6)) == (1, 0)
    for index in (0, 1):
        curriculum.observe("b", index, 1.0)
    assert curriculum.levels["b"] == 0  # it has one level


def test_a_curriculum_survives_a_checkpoint() -> None:
    config = CurriculumConfig(window=2)
    whole, broken = Curriculum(config, {"a": 3}), Curriculum(config, {"a": 3})
    scores = [1.0, 0.9, 1.0, 0.2, 0.9, 0.9, 0.0, 0.0]
    for index, score in enumerate(scores):
        for each in (whole, broken):
            each.hand_out("a", index)
            each.observe("a", index, score)
        again = Curriculum(config, {"a": 3})
        again.restore(broken.state())
        broken = again
        assert broken.levels == whole.levels
    with pytest.raises(ValueError, match="of the tasks a, not of b"):
        Curriculum(config, {"b": 3}).restore(whole.state())
    with pytest.raises(ValueError, match="lower_at must be below raise_at"):
        CurriculumConfig(raise_at=0.5, lower_at=0.5)


# ---- what a model wrote is parsed, never evaluated


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3*4", 14),
        ("-(2**10)", -1024),
        ("[1, [2.5, 'x']]", [1, [2.5, "x"]]),
        ("(1, None)", (1, None)),
        ("7 // 2 % 2", 1),
    ],
)
def test_literals(text: str, value: object) -> None:
    assert literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "open('/etc/passwd')",
        "lambda: 0",
        "[x for x in (1,)]",
        "9**9**9**9",
        "1 << 10**9",
        "'a' * 10**9",
        "(" * 500,
        "1" * (LONGEST + 1),
        "1; 2",
        "f'{1}'",
        "a.b",
    ],
)
def test_what_is_no_arithmetic_is_refused(text: str) -> None:
    for read in (literal, formula):
        with pytest.raises(Refused):
            read(text)


def test_formulas_are_sympys_without_its_evaluation() -> None:
    import sympy

    x = sympy.Symbol("x")
    assert sympy.simplify(formula("2*x**2 + sin(x)/3 - 1") - (2 * x**2 + sympy.sin(x) / 3 - 1)) == 0


@pytest.mark.parametrize(
    ("text", "tags", "answer"),
    [
        ("so <answer> 7 </answer>", True, "7"),
        ("<answer>1</answer> no, <answer>2</answer>", True, "2"),
        ("7", True, None),
        ("<answer></answer>", True, None),
        (r"it is \boxed{8}", False, "8"),
        (" 9 ", False, "9"),
        ("", False, None),
    ],
)
def test_what_of_a_text_is_the_answer(text: str, tags: bool, answer: str | None) -> None:
    assert final_answer(text, tags=tags) == answer


# ---- the environment


@asynccontextmanager
async def opened() -> AsyncIterator[GroupDataset]:
    form = ReasoningForm(instruction="", tags=False)
    async with open_reasoning_tasks(
        renderer, ["chain_sum"], group_size=2, seed=3, count=40, chunk=4, form=form, workers=1
    ) as groups:
        yield groups


SUBJECT = conformance.Subject(opened, renderer, ["7", "(1 + 2) * 3", "__import__('os')"], max_context=100_000)


@installed
@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_the_suite_of_all_environments(check: conformance.Check) -> None:
    if reason := conformance.gap(check, SUBJECT):
        pytest.skip(reason)
    await check(SUBJECT)


@installed
@pytest.mark.anyio
async def test_a_right_answer_is_right_and_a_task_that_does_not_exist_is_named() -> None:
    async with open_reasoning_tasks(renderer, ["chain_sum"], group_size=1, seed=0, workers=1) as groups:
        for index in range(4):
            (env,) = await groups[index].make_envs()
            assert env.reference() is not None  # type: ignore[attr-defined]
            right = await env.grade(f"<answer>{env.reference()}</answer>")  # type: ignore[attr-defined]
            wrong = await env.grade("<answer>nonsense</answer>")  # type: ignore[attr-defined]
            assert (right.score, wrong.score < 0.5) == (1.0, True)
    with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
        async with open_reasoning_tasks(renderer, ["chain_sums"], workers=1):
            pass
