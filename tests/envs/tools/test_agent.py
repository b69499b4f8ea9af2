"""Episodes with tools: one sequence to train on, in every family's format; limits, rewards, sessions; nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import anyio
import numpy as np
import pytest

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.rendering import Renderer, RenderError, assistant, get_renderer, user
from engine.runtime.simulation import simulate
from engine.training.assembly import assemble
from engine.training.trajectories import TrajectoryGroup
from envs.rollout import FailFast, GroupFailed, MinViable, RolloutLimits, RolloutSettings, play_group
from envs.tools import Toolbox, ToolEnv, ToolGroup, ToolLimits, ToolRewards, ToolSession, ToolUnavailable, tool
from recipes.tiny import make_tokenizer
from tests.envs.tools.agents import (
    ONE_OF_EACH,
    SETTINGS,
    WITH_TOOLS,
    Script,
    calling,
    multiply,
    renderer_of,
    sampled,
    submit,
)


def play(
    script: Script,
    renderer: Renderer,
    grade: Callable[[str], Any] = lambda answer: float("42" in answer),
    tools: Sequence[Any] = (multiply, submit),
    settings: RolloutSettings = SETTINGS,
    **options: Any,
) -> TrajectoryGroup:
    def make() -> ToolEnv:
        return ToolEnv(renderer, [user("6 * 7?")], Toolbox(tools), grade, **options)

    return simulate(play_group, ToolGroup(make, 1, ("math",)), script, settings, 0).unwrap()


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_an_episode_is_one_datum_in_every_format(name: str) -> None:
    """Two turns of calls, in the second several of which fail, then the answer: one sequence, trained exactly on what was sampled."""
    renderer = renderer_of(name)
    wrong = [calling("multiply", left=1, right="x"), calling("nothing")]
    if name.startswith("llama3"):
        wrong = wrong[1:]  # it makes one call at a time
    script = Script(
        renderer,
        assistant("", tool_calls=[calling("multiply", left=6, right=7)]),
        assistant("", tool_calls=wrong),
        "It is 42.",
    )
    group = play(script, renderer, reference="42")
    (trajectory,) = group.trajectories
    assert (trajectory.reward, trajectory.end, len(trajectory.turns)) == (1.0, "done", 3)
    assert trajectory.turns[-1].metrics == {
        "correct": 1.0,
        "answered": 1.0,
        "format": 1.0,
        "tool_calls": 1.0 + len(wrong),
        "tool_errors": len(wrong),
        "tool_unparsed": 0.0,
        "tool_timeouts": 0.0,
    }
    (datum,) = assemble(group, np.array([1.0]))
    targets, mask = datum.loss_inputs["target_tokens"], datum.loss_inputs["mask"]
    assert np.array_equal(targets[mask > 0], np.concatenate(script.tokens))
    whole = renderer.vocabulary.decode(np.concatenate([datum.model_input.tokens, targets[-1:]]).tolist())
    for said in ("42", "Error: there is no tool 'nothing'", 'Error: right must be an integer, not "x"')[
        : 1 + len(wrong)
    ]:
        assert said.replace('"', "") in whole.replace("\\", "").replace('"', "")
    observed = renderer.vocabulary.decode(targets[(mask == 0)].tolist())
    assert "there is no tool 'nothing'" in observed.replace("\\", "")


def test_a_format_without_tools_is_refused() -> None:
    renderer = get_renderer("role_colon", make_tokenizer())
    with pytest.raises(RenderError, match="cannot declare tools"):
        play(Script(renderer), renderer)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_whatever_is_sampled_the_episode_goes_on_or_ends(name: str) -> None:
    """Control tokens and pieces of calls at random: answered as calls or graded as an answer, one sequence, and never an error."""
    renderer = renderer_of(name)
    pieces = [[token] for token in renderer.vocabulary.special_tokens.values()]
    texts = [
        '{"name": "multiply", "arguments": {"left": 1',
        "}}",
        "multiply",
        "<function=multiply>",
        "\n",
        " x",
        "functions.multiply:0",
    ]
    pieces += [renderer.vocabulary.encode(text) for text in texts]
    whole = [sampled(renderer, assistant("", tool_calls=[calling("multiply", left=2, right=3)])).tolist()]
    called = 0
    for seed in range(12):
        rng = random.Random(seed)

        def answer(rng: random.Random = rng) -> list[int]:
            if rng.random() < 0.4:  # a call with a part of it lost or doubled
                (call,) = whole
                start, end = sorted((rng.randrange(len(call)), rng.randrange(len(call))))
                return call[:start] + call[end:] if rng.random() < 0.5 else call[:end] + call[start:]
            return [token for _ in range(rng.randrange(1, 9)) for token in rng.choice(pieces)]

        script = Script(renderer, *[answer() for _ in range(4)])
        group = play(script, renderer, limits=ToolLimits(max_turns=4))
        (trajectory,) = group.trajectories
        called += len(trajectory.turns) > 1
        assert trajectory.end == "done"
        assert len(assemble(group, np.array([1.0]))) == 1
    assert called >= 2


chatml = renderer_of("qwen3_instruct")


def test_a_call_that_cannot_be_read_is_answered() -> None:
    broken = [*chatml.vocabulary.encode("Hm. "), control("<tool_call>"), *chatml.vocabulary.encode('{"name": 3}')]
    script = Script(chatml, [*broken, control("</tool_call>"), control("<|im_end|>")], "42")
    (trajectory,) = play(script, chatml).trajectories
    assert trajectory.reward == pytest.approx(0.9)
    assert (trajectory.turns[1].metrics["format"], trajectory.turns[1].metrics["tool_unparsed"]) == (0.0, 1.0)
    assert trajectory.turns[0].logs["calls"] == [
        {
            "unparsed": '{"name": 3}',
            "error": "Error: the call could not be read: a tool call is a JSON object with a name",
        }
    ]
    assert "could not be read" in chatml.vocabulary.decode(script.asked[1].prompt.tokens.tolist())


def control(name: str) -> int:
    return chatml.vocabulary.special_tokens[name]


@pytest.mark.parametrize(
    ("tokens", "calls"),
    [
        ([], 0),
        ("enough words", 0),
        ([control("<tool_call>")], 1),
        ([control("</tool_call>"), control("<|im_start|>"), control("<|im_end|>")], 0),
        ([control("<tool_call>"), control("<tool_call>"), control("<|im_end|>")], 1),
    ],
    ids=["nothing", "no end", "half a call", "controls where none belong", "a call in a call"],
)
def test_answers_in_no_form_end_or_go_on(tokens: Any, calls: int) -> None:
    tokens = chatml.vocabulary.encode(tokens) if isinstance(tokens, str) else tokens
    (trajectory,) = play(Script(chatml, tokens, "no"), chatml).trajectories
    assert trajectory.turns[-1].metrics["tool_unparsed"] == calls
    assert (trajectory.turns[-1].metrics["format"], trajectory.reward) == (0.0, pytest.approx(-0.1))


def test_calls_in_the_last_answer_are_not_made() -> None:
    made = []

    @tool(runs="loop")
    def note(n: int) -> str:
        made.append(n)
        return "noted"

    script = Script(chatml, *[assistant("", tool_calls=[calling("note", n=n)]) for n in range(3)])
    (trajectory,) = play(script, chatml, lambda _: 1.0, [note], limits=ToolLimits(max_turns=3)).trajectories
    assert made == [0, 1]
    assert (trajectory.end, len(trajectory.turns), trajectory.reward) == ("done", 3, 0.0)
    assert (trajectory.turns[-1].metrics["answered"], trajectory.turns[-1].metrics["tool_calls"]) == (0.0, 3.0)


def test_limits_on_calls() -> None:
    three = [calling("multiply", left=1, right=n) for n in range(3)]
    script = Script(chatml, assistant("", tool_calls=three), assistant("", tool_calls=three), "42")
    limits = ToolLimits(max_calls=4, calls_per_answer=2)
    (trajectory,) = play(script, chatml, limits=limits).trajectories
    refused = [["not made" in str(call) for call in turn.logs["calls"]] for turn in trajectory.turns[:2]]
    # Of the four calls, refused ones count too: what was asked for is what is limited.
    assert refused == [[False, False, True], [False, True, True]]
    assert trajectory.turns[-1].metrics["tool_errors"] == 3.0


def test_a_tool_may_end_the_episode() -> None:
    script = Script(chatml, assistant("", tool_calls=[calling("submit", answer="it is 42")]))
    (trajectory,) = play(script, chatml).trajectories
    assert (trajectory.reward, len(trajectory.turns)) == (1.0, 1)
    assert trajectory.turns[0].metrics["submitted"] == 1.0
    assert trajectory.turns[0].logs["answer"] == "it is 42"


def test_rewards() -> None:
    calls = [calling("multiply", left=6, right=7), calling("nothing")]
    script = Script(chatml, assistant("", tool_calls=calls), "42")
    rewards = ToolRewards(error_penalty=0.25, call_cost=0.125)
    assert play(script, chatml, rewards=rewards).rewards_G[0] == pytest.approx(1 - 0.25 - 2 * 0.125)


def test_graders_may_wait_and_must_be_finite() -> None:
    async def slow(answer: str) -> float:
        await anyio.sleep(5)
        return 0.5

    assert play(Script(chatml, "x"), chatml, slow).rewards_G[0] == 0.5
    with pytest.raises(ValueError, match="the grader gave nan for the answer 'x'"):
        play(Script(chatml, "x"), chatml, lambda _: float("nan"))


def test_a_broken_world_fails_the_group() -> None:
    @tool(runs="loop")
    def search() -> str:
        raise ToolUnavailable("the index is gone")

    script = [assistant("", tool_calls=[calling("search")])] * 3
    with pytest.raises(GroupFailed, match="ToolUnavailable: the index is gone"):
        play(
            Script(chatml, *script),
            chatml,
            tools=[search],
            settings=RolloutSettings(SamplingParams(max_tokens=500), failure=MinViable(1)),
        )


def test_members_share_the_first_prompt() -> None:
    group = ToolGroup(lambda: ToolEnv(chatml, [user("?")], Toolbox([multiply]), float), 3)

    async def first() -> list[Any]:
        return [await env.reset() for env in await group.make_envs()]

    one, two, three = simulate(first).unwrap()
    assert one is two is three
    assert ToolGroup(lambda: None, 1).tags == ()  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="at least one member"):
        ToolGroup(lambda: None, 0)  # type: ignore[arg-type,return-value]


# ---- sessions


class Drawer(ToolSession):
    """What is put in can be taken out, in this episode."""

    opened: ClassVar[list[Drawer]] = []

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.held: dict[str, str] = {}
        self.state = "new"
        Drawer.opened.append(self)

    async def setup(self) -> None:
        self.state = "setting up"
        await anyio.sleep(1)
        if self.fails == "setup":
            raise OSError("no drawer")
        self.state = "open"

    async def teardown(self) -> None:
        await anyio.sleep(1)
        self.state = "closed"
        if self.fails == "teardown":
            raise OSError("jammed")

    @tool
    async def put(self, key: str, value: str) -> None:
        """Puts something in."""
        await anyio.sleep(1 / len(value))
        self.held[key] = value

    @tool
    async def take(self, key: str) -> str:
        """Takes it out."""
        return self.held.pop(key, "nothing")


def drawers(*fails: str) -> ToolGroup:
    Drawer.opened = []
    each = iter(fails)

    def make() -> ToolEnv:
        session = Drawer(next(each, ""))
        box = Toolbox(session.tools(), parallel=session.parallel)
        return ToolEnv(chatml, [user("go")], box, lambda answer: float(answer == "ok"), session=session)

    return ToolGroup(make, len(fails))


class PutsAndTakes:
    """Each member puts its own word in, and takes it out in the same answer, after it."""

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        said = chatml.vocabulary.decode(request.prompt.tokens.tolist())
        word = f"word{request.seed % 1000}"
        calls = [calling("put", key="k", value=word), calling("take", key="k"), calling("take", key="k")]
        answer = (
            assistant("ok") if "<tool_response>\n" in said.split("go<|im_end|>")[1] else assistant("", tool_calls=calls)
        )
        tokens = sampled(chatml, answer)
        return [Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0)]


def test_every_episode_has_its_own_state() -> None:
    report = simulate(play_group, drawers("", "", ""), PutsAndTakes(), SETTINGS, 1)
    group = report.unwrap()
    words = []
    for trajectory in group.trajectories:
        put, took, again = trajectory.turns[0].logs["calls"]
        assert (put["result"], took["result"], again["result"]) == ("done", put["arguments"]["value"], "nothing")
        words.append(took["result"])
    assert len(set(words)) == 3
    assert [drawer.state for drawer in Drawer.opened] == ["closed"] * 3
    assert report.seconds < 4  # set up and torn down at the same time


@pytest.mark.parametrize("fails", [("", "setup"), ("setup", "setup")])
def test_a_setup_that_fails_is_torn_down_too(fails: tuple[str, ...]) -> None:
    with pytest.raises(OSError, match="no drawer"):
        simulate(play_group, drawers(*fails), PutsAndTakes(), SETTINGS, 1).unwrap()
    assert [drawer.state for drawer in Drawer.opened] == ["closed"] * 2


def test_every_session_is_torn_down_though_one_fails() -> None:
    with pytest.raises(ExceptionGroup, match="could not be torn down") as caught:
        simulate(play_group, drawers("teardown", "", "teardown"), PutsAndTakes(), SETTINGS, 1).unwrap()
    assert len(caught.value.exceptions) == 2
    assert [drawer.state for drawer in Drawer.opened] == ["closed"] * 3


def test_budgets_of_setup_and_teardown() -> None:
    limits = RolloutLimits(provision=0.5)
    settings = RolloutSettings(SamplingParams(max_tokens=500), limits, FailFast())
    with pytest.raises(TimeoutError, match="make_envs"):
        simulate(play_group, drawers(""), PutsAndTakes(), settings, 1).unwrap()
    assert [drawer.state for drawer in Drawer.opened] == ["closed"]


@pytest.mark.parametrize("step", range(1, 60, 3))
def test_cancelled_anywhere_every_session_is_torn_down(step: int) -> None:
    report = simulate(play_group, drawers("", ""), PutsAndTakes(), SETTINGS, 1, cancel_at=step)
    assert report.error is None
    assert all(drawer.state in ("new", "closed") for drawer in Drawer.opened)
