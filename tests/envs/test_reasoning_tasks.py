"""reasoning-gym's tasks: reproducible problems at a level that follows success, their own scorers in workers, and nothing of an answer evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from engine.backends.values import Completion
from engine.rendering import get_renderer
from engine.runtime import WorkerPool, simulate
from envs import conformance
from envs.contracts import AdaptiveGroups, GroupDataset
from envs.reasoning_tasks import CurriculumConfig, NotGenerated, ReasoningForm, open_reasoning_tasks
from envs.reasoning_tasks.curriculum import Curriculum
from envs.reasoning_tasks.dataset import PRELOAD
from envs.reasoning_tasks.env import final_answer
from envs.reasoning_tasks.guarded import Refused, formula, literal
from recipes.tiny import make_tokenizer

tokenizer = make_tokenizer()
renderer = get_renderer("role_colon", tokenizer)
PLAIN = ReasoningForm(instruction="", tags=False)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock on both: workers take real time."""
    return str(request.param)


def needs_gym() -> None:
    pytest.importorskip("reasoning_gym")


# ---- without the package


def test_a_task_gets_harder_and_easier_by_what_was_measured() -> None:
    curriculum = Curriculum(CurriculumConfig(window=4, raise_at=0.75, lower_at=0.25), {"a": 2, "b": 5})
    for index in range(3):
        assert curriculum.hand_out("a", index) == 0
        curriculum.observe("a", index, 1.0)
    assert curriculum.levels == {"a": 0, "b": 0}
    curriculum.hand_out("a", 3)
    curriculum.hand_out("a", 4)
    curriculum.observe("a", 3, 0.0)  # a mean of 0.75 over four
    assert curriculum.levels == {"a": 1, "b": 0}
    assert [curriculum.hand_out("a", index) for index in (0, 4, 5)] == [0, 0, 1]  # what was handed out keeps its level
    curriculum.observe("a", 4, 0.0)  # of another level: it does not count
    for index in range(5, 9):
        curriculum.hand_out("a", index)
        curriculum.observe("a", index, 0.25)
    assert curriculum.levels["a"] == 0
    assert [curriculum.hand_out("a", index) for index in (4, 5, 8, 9)] == [0, 1, 1, 0]


def test_levels_stay_within_their_ends() -> None:
    curriculum = Curriculum(CurriculumConfig(start=9, highest=3, window=1), {"a": 2, "b": 5})
    assert curriculum.levels == {"a": 2, "b": 3}
    for index in range(4):
        curriculum.hand_out("b", index)
        curriculum.observe("b", index, 1.0)
    assert curriculum.levels["b"] == 3
    for index in range(4, 12):
        curriculum.hand_out("b", index)
        curriculum.observe("b", index, 0.0)
    assert curriculum.levels["b"] == 0
    with pytest.raises(ValueError, match="lower_at must be below raise_at"):
        CurriculumConfig(raise_at=0.3, lower_at=0.3)


def test_a_curriculum_goes_through_a_checkpoint() -> None:
    config = CurriculumConfig(window=3)
    first, second = Curriculum(config, {"a": 4}), Curriculum(config, {"a": 4})
    for index in range(8):
        first.hand_out("a", index)
        first.observe("a", index, 1.0)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for curriculum in (first, second):
        for index in range(8, 12):
            curriculum.hand_out("a", index)
            curriculum.observe("a", index, 1.0)
    assert second.levels == first.levels
    assert [second.hand_out("a", index) for index in range(14)] == [first.hand_out("a", index) for index in range(14)]
    with pytest.raises(ValueError, match="of the tasks a, not of b"):
        Curriculum(config, {"b": 4}).restore(first.state())


@pytest.mark.parametrize(
    ("text", "tags", "answer"),
    [
        ("<answer>5</answer>", True, "5"),
        ("<answer>4</answer> no: <ANSWER>\n5 </ANSWER> done", True, "5"),
        ("5", True, None),
        ("<answer></answer>", True, None),
        ("<answer>5", True, None),
        ("5", False, "5"),
        (" 5 \n", False, "5"),
        (r"so \boxed{5}", False, "5"),
        ("<answer>5</answer> or so", False, "5"),
        ("", False, None),
    ],
)
def test_where_the_answer_is(text: str, tags: bool, answer: str | None) -> None:
    assert final_answer(text, tags=tags) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2, 3]", [1, 2, 3]),
        ("['a', \"b\"]", ["a", "b"]),
        ("[[0, 1], [1, 0]]", [[0, 1], [1, 0]]),
        ("(1, -2)", (1, -2)),
        ("2 + 3 * 4 - 1", 13),
        ("7 // 2 + 7 % 2", 4),
        ("0x1f & 0b1010 | 1 << 3", (0x1F & 0b1010) | (1 << 3)),
        ("~5 ^ 3", ~5 ^ 3),
        ("2 ** 10", 1024),
        ("None", None),
    ],
)
def test_arithmetic_without_evaluation(text: str, value: Any) -> None:
    assert literal(text) == value


HOSTILE = [
    "__import__('os').system('echo pwned')", "[__import__('os').system('echo pwned')]", "open('/etc/passwd')", "(lambda: 0)()", "x.__class__", "[x for x in [1]]",
    "9 ** 9 ** 9", "1 << 999999999", "exit()", "f'{1}'", "{1: 2}", "a := 1", "", "(" * 5000, "-" * 9000 + "1", "9" * 20_000, "'a' * 10**9", "[1] * 10**9",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        literal(text)


def test_formulas_without_evaluation() -> None:
    sympy = pytest.importorskip("sympy")
    x, c = sympy.Symbol("x"), sympy.Symbol("C")
    assert formula("3*x**2/2 - cos(x) + C") == sympy.Rational(3, 2) * x**2 - sympy.cos(x) + c
    assert formula("y + 1", {"y": x}) == x + 1
    assert formula("exp(2*x) + sqrt(pi)") == sympy.exp(2 * x) + sympy.sqrt(sympy.pi)
    for text in [*HOSTILE, "eval('1')", "x.y", "x[0]", "f(x)", "integrate(x)", "9**9**9", "__x", "x or 1"]:
        if text != "":
            with pytest.raises(Refused):
                formula(text)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    async def program() -> None:
        async with open_reasoning_tasks(renderer, ["gcd"]):
            pass

    with pytest.raises(ImportError, match=r"pip install 'callsheet\[gym\]'"):
        simulate(program).unwrap()


# ---- with it


def completion(text: str) -> Completion:
    tokens = np.array(tokenizer.encode(f" {text}\n\nUser:").ids, np.int32)
    return Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0)


async def answered(groups: Any, index: int, text: str | None) -> Any:
    """One attempt at a problem; None: the right answer."""
    env, *_ = await groups[index].make_envs()
    await env.reset()
    return await env.step(completion(env.reference() if text is None else text))


def test_problems_are_asked_and_scored() -> None:
    """Inline, on the virtual clock: the same code without processes."""
    needs_gym()

    async def program() -> list[Any]:
        async with open_reasoning_tasks(
            renderer, ["chain_sum", "gcd"], group_size=2, seed=3, form=PLAIN, chunk=4
        ) as groups:
            assert isinstance(groups, AdaptiveGroups)
            steps = [await answered(groups, index, text) for index in range(4) for text in (None, "no", "")]
            again = [await answered(groups, index, None) for index in range(4)]
            assert [step.logs["question"] for step in again] == [step.logs["question"] for step in steps[::3]]
            return steps

    steps = simulate(program).unwrap()
    assert [step.reward for step in steps[::3]] == [1.0] * 4
    assert all(step.reward < 0.5 for step in (*steps[1::3], *steps[2::3]))
    assert steps[0].metrics == {"correct": 1.0, "format": 1.0, "grading_failed": 0.0, "level": 0.0}
    assert steps[0].logs["grade"] == "scored 1 by the task's own scorer"
    assert len({step.logs["question"] for step in steps[::3]}) == 4


def test_levels_make_problems_harder() -> None:
    needs_gym()

    async def questions(level: int, moves: tuple[str, ...] = ()) -> list[str]:
        config = CurriculumConfig(start=level, inclusive=False, moves=moves)
        async with open_reasoning_tasks(renderer, ["chain_sum"], curriculum=config, form=PLAIN, chunk=4) as groups:
            return [(await groups[index].make_envs())[0].question() for index in range(4)]

    def terms(texts: list[str]) -> set[int]:
        return {text.count(" + ") + text.count(" - ") + 1 for text in texts}

    async def program() -> None:
        assert terms(await questions(0)) == {2}
        assert terms(await questions(3)) == {5}
        longer = await questions(3, ("num_terms",))
        assert terms(longer) == {5}
        assert all(len(word) <= 2 for text in longer for word in text.split() if word.strip("-").isdigit())

    simulate(program).unwrap()


def test_a_task_without_one_right_answer() -> None:
    needs_gym()

    async def program() -> None:
        async with open_reasoning_tasks(renderer, ["graph_color"], form=PLAIN, chunk=2) as groups:
            (env, *_) = await groups[0].make_envs()
            assert env.reference() is None
            step = await answered(groups, 0, "{}")
            assert step.reward == 0.01  # what the task's own scorer gives to whatever it can read
            assert "reference" not in step.logs

    simulate(program).unwrap()


def test_what_is_neither_true_nor_false_is_wrong() -> None:
    """The task's own scorer takes anything that is not true for false."""
    needs_gym()

    async def program() -> None:
        async with open_reasoning_tasks(renderer, ["game_of_life_halting"], form=PLAIN, chunk=2) as groups:
            step = await answered(groups, 0, "perhaps")
            assert step.reward == 0.0
            assert (await answered(groups, 0, None)).reward == 1.0

    simulate(program).unwrap()


@pytest.mark.parametrize(
    ("tasks", "moves", "message"),
    [
        (["chain_sums"], (), "reasoning-gym has no task 'chain_sums'; did you mean 'chain_sum'"),
        (["chain_sum"], ("digits",), "the task 'chain_sum' has no attribute 'digits'; there are num_terms, num_digits"),
        (["acre"], ("size",), "the task 'acre' has no attributes"),
        ([], (), "there is no task to learn"),
    ],
)
def test_wrong_names_are_told(tasks: list[str], moves: tuple[str, ...], message: str) -> None:
    needs_gym()

    async def program() -> None:
        async with open_reasoning_tasks(renderer, tasks, curriculum=CurriculumConfig(moves=moves)):
            pass

    with pytest.raises(ValueError, match=message):
        simulate(program).unwrap()


def test_a_generator_that_fails_is_told() -> None:
    needs_gym()

    async def program() -> None:
        async with open_reasoning_tasks(renderer, ["chain_sum"], options={"min_terms": -5}, form=PLAIN) as groups:
            await groups[0].make_envs()

    with pytest.raises(NotGenerated, match="task 'chain_sum': problems 0 and following: "):
        simulate(program).unwrap()


@pytest.mark.anyio
async def test_workers_generate_and_score_within_budgets() -> None:
    """Real processes: a slow generator is over its budget, a scorer too; the others go on."""
    needs_gym()
    async with WorkerPool(1, spares=1, preload=PRELOAD) as pool:
        async with open_reasoning_tasks(renderer, ["spell_backward"], form=PLAIN, pool=pool) as groups:
            assert (await answered(groups, 0, None)).reward == 1.0
        async with open_reasoning_tasks(
            renderer, ["sokoban"], form=PLAIN, generation_budget=0.001, pool=pool
        ) as groups:
            with pytest.raises(NotGenerated, match="exceeded its budget"):
                await groups[0].make_envs()
        async with open_reasoning_tasks(renderer, ["spell_backward"], form=PLAIN, budget=1e-5, pool=pool) as groups:
            step = await answered(groups, 1, "x")
            assert (step.reward, step.metrics["grading_failed"]) == (0.0, 1.0)
            assert "exceeded its budget" in step.logs["grade"]


@pytest.mark.anyio
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check) -> None:
    """Inline: the checks of processes are those of the grading pool's own tests."""
    needs_gym()
    from engine.runtime.offload import inline

    @asynccontextmanager
    async def opened() -> AsyncIterator[GroupDataset]:
        async with open_reasoning_tasks(renderer, ["chain_sum"], group_size=3, count=16, form=PLAIN, chunk=4) as groups:
            yield groups

    subject = conformance.Subject(opened, renderer, ["3", "-4", "12"])
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    token = inline.set(True)
    try:
        await check(subject)
    finally:
        inline.reset(token)


AUDIT = """
import json, sys
from envs.reasoning_tasks.work import Variant, generate, score
hostile = json.loads(sys.stdin.read())
seen, watching = [], False
def hook(event, args):
    if watching and event in ("os.system", "subprocess.Popen"):
        seen.append([event, task])
    if watching and event == "exec" and args[0].co_filename == "<string>" and not {"sympy", "Symbol", "Integer"}.isdisjoint(args[0].co_names):
        seen.append([event, task])
sys.addaudithook(hook)
for task in ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting", "puzzle24", "countdown", "simple_integration", "polynomial_multiplication",
             "intermediate_integration", "bitwise_arithmetic"):
    variant = Variant(task, 0)
    (item,) = generate(variant, 5, 1, [0])
    watching = True
    right = score(variant, item.entry, item.answer)[0]
    wrong = max(score(variant, item.entry, text)[0] for text in hostile)
    watching = False
    if right < 0.99 or wrong > 0.5:
        seen.append([task, right, wrong])
print(json.dumps(seen))
"""


def test_nothing_of_an_answer_is_evaluated() -> None:
    """In the tasks whose scorers evaluate answers, and with an interpreter that tells what it executes."""
    needs_gym()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AUDIT],
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == []
    assert "pwned" not in done.stdout + done.stderr


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, envs.reasoning_tasks; print([m for m in ('reasoning_gym', 'sympy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
