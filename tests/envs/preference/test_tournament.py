"""Tournaments inside a group: all comparisons at once within the bound, and what becomes of one that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends import SamplingParams
from engine.rendering import Message, assistant
from engine.runtime.testing import every_cancellation, simulate
from engine.training.preference import tournament_rewards
from envs.contracts import GroupGrade
from envs.preference.comparing import ComparisonFailed, FunctionPreferenceModel, shorter
from envs.preference.tournament import Tournament, TournamentGroups, TournamentSettings, pairing
from envs.rollout import FailFast, RolloutSettings, play_group
from tests.envs.preference.speakers import QUESTION, RENDERER, Says


def words(*lengths: int) -> list[Message]:
    return [assistant("x" * length) for length in lengths]


class Counting:
    """Compares by length in `seconds`, counting how many comparisons are under way; fails for the pairs of lengths in `broken`."""

    def __init__(
        self, seconds: float = 1.0, broken: Sequence[tuple[int, int]] = (), score: float | None = None
    ) -> None:
        self.seconds = seconds
        self.broken = broken
        self.score = score
        self.now = self.most = self.begun = self.ended = 0

    async def compare(self, conversation: object, a: Message, b: Message) -> float:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.now -= 1
            self.ended += 1
        if (len(a.text), len(b.text)) in self.broken:
            raise RuntimeError("the judge is ill")
        return float(shorter((), a, b)) if self.score is None else self.score


def test_everybody_meets_everybody_at_once() -> None:
    model = Counting()
    report = simulate(lambda: Tournament(model).grade(QUESTION, words(4, 1, 3, 2)))
    assert report.unwrap() == GroupGrade(
        (-1.0, 1.0, pytest.approx(-1 / 3), pytest.approx(1 / 3)),
        ({"comparisons": 3.0, "comparisons_failed": 0.0, "ties": 0.0},) * 4,
    )
    assert (report.seconds, model.most, model.begun) == (1.0, 6, 6)


def test_the_bound_holds_over_all_groups_that_share_a_tournament() -> None:
    async def program(model: Counting) -> None:
        tournament = Tournament(model, TournamentSettings(concurrency=4))
        async with anyio.create_task_group() as groups:
            for _ in range(3):
                groups.start_soon(tournament.grade, QUESTION, words(1, 2, 3, 4))

    for seed in range(20):
        model = Counting()
        report = simulate(program, model, seed=seed)
        report.unwrap()
        assert (model.most, model.begun) == (4, 18)
        assert report.seconds == 5.0  # 18 comparisons in rounds of 4


def test_equal_answers_tie_without_being_asked_about() -> None:
    model = Counting()
    value = simulate(lambda: Tournament(model).grade(QUESTION, words(2, 2, 2, 1))).unwrap()
    assert model.begun == 3
    assert value is not None
    assert value.rewards == (pytest.approx(-1 / 3),) * 3 + (1.0,)
    assert [count["ties"] for count in value.metrics] == [2, 2, 2, 0]


def test_a_failed_comparison_is_an_error_and_cancels_the_others() -> None:
    for seed in range(20):
        model = Counting(broken=[(2, 3)])
        report = simulate(lambda model=model: Tournament(model).grade(QUESTION, words(1, 2, 3)), seed=seed)
        with pytest.raises(
            ComparisonFailed, match=r"members 1 and 2 of a group could not be compared: RuntimeError: the judge is ill"
        ):
            report.unwrap()
        assert model.now == 0


def test_a_failed_comparison_is_left_out_and_counted() -> None:
    settings = TournamentSettings(on_failure="skip")
    value = simulate(lambda: Tournament(Counting(broken=[(2, 3)]), settings).grade(QUESTION, words(1, 2, 3))).unwrap()
    assert value == GroupGrade(
        (1.0, -1.0, -1.0),
        (
            {"comparisons": 2.0, "comparisons_failed": 0.0, "ties": 0.0},
            {"comparisons": 1.0, "comparisons_failed": 1.0, "ties": 0.0},
            {"comparisons": 1.0, "comparisons_failed": 1.0, "ties": 0.0},
        ),
    )
    # Nobody gets a silent 0 for having been compared with nobody.
    lonely = Counting(broken=[(1, 2), (1, 3)])
    with pytest.raises(ComparisonFailed, match=r"member 0 of a group has no comparison left.*the judge is ill"):
        simulate(lambda: Tournament(lonely, settings).grade(QUESTION, words(1, 2, 3))).unwrap()


@pytest.mark.parametrize("score", [1.5, -1.1, float("nan"), float("inf")])
def test_what_is_no_score_is_a_failed_comparison(score: float) -> None:
    with pytest.raises(ComparisonFailed, match=r"which is not in \[-1, 1\]"):
        simulate(lambda: Tournament(Counting(score=score)).grade(QUESTION, words(1, 2))).unwrap()


def test_a_comparison_that_takes_too_long_has_failed() -> None:
    settings = TournamentSettings(timeout=0.5)
    report = simulate(lambda: Tournament(Counting(), settings).grade(QUESTION, words(1, 2)))
    with pytest.raises(ComparisonFailed, match=r"BudgetOverrun: the verdict did not finish within 0\.5 s"):
        report.unwrap()
    assert report.seconds == 0.5


def test_cancelled_anywhere_it_leaves_nothing_running_and_no_slot_taken() -> None:
    model = Counting()

    async def program() -> None:
        tournament = Tournament(model, TournamentSettings(concurrency=2))
        try:
            await tournament.grade(QUESTION, words(1, 2, 3))
        finally:
            assert model.now == 0
            with anyio.CancelScope(shield=True):
                assert (await tournament.grade(QUESTION, words(1, 2))).rewards == (1.0, -1.0)

    cancelled = 0
    for report in every_cancellation(program):
        cancelled += report.cancelled
        if not report.cancelled:
            report.unwrap()
        assert report.error is None or report.cancelled
    assert cancelled > 5


@given(st.integers(1, 12), st.integers(1, 12))
def test_pairing(members: int, opponents: int) -> None:
    pairs = pairing(members, opponents)
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= first < second < members for first, second in pairs)
    met = Counter(member for pair in pairs for member in pair)
    wanted = min(opponents, members - 1)
    wanted += wanted * members % 2 if wanted < members - 1 else 0
    assert all(met[member] == wanted for member in range(members))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_rewards_sum_to_zero_and_agree_with_a_plain_loop(lengths: list[int]) -> None:
    answers = words(*lengths)
    value = simulate(lambda: Tournament(FunctionPreferenceModel(shorter)).grade(QUESTION, answers)).unwrap()
    assert value is not None
    plain = [
        (first, second, shorter((), answers[first], answers[second]))
        for first in range(len(answers))
        for second in range(first + 1, len(answers))
    ]
    assert list(value.rewards) == tournament_rewards(len(answers), plain).tolist()
    assert sum(value.rewards) == pytest.approx(0, abs=1e-9)


@pytest.mark.anyio
async def test_a_group_is_played_and_compared_as_the_rollout_does() -> None:
    policy = Says(lambda _, place: "x" * (place + 1))
    groups = TournamentGroups(
        renderer=RENDERER,
        conversations=[QUESTION],
        tournament=Tournament(FunctionPreferenceModel(shorter)),
        group_size=3,
    )
    assert len(groups) == 1
    group = await play_group(groups[0], policy, RolloutSettings(SamplingParams(max_tokens=50)), seed=0)
    assert group.rewards_G.tolist() == [1, 0, -1]
    assert [request.num_samples for request in policy.requests] == [3]
    assert group.tags == ("preference",)
    assert group.trajectories[0].metrics == {"comparisons": 2, "comparisons_failed": 0, "ties": 0}
    assert group.trajectories[0].turns[0].logs == {"question": "Name an animal.", "answer": "x"}
    assert group.trajectories[0].turns[0].metrics == {"format": 1}


@pytest.mark.anyio
async def test_an_answer_that_was_cut_off_pays_for_it() -> None:
    groups = TournamentGroups(
        renderer=RENDERER,
        conversations=[QUESTION],
        tournament=Tournament(FunctionPreferenceModel(shorter)),
        group_size=2,
        unfinished_penalty=0.5,
    )
    group = await play_group(groups[0], Says(lambda *_: "x", ended=False), RolloutSettings(), seed=0)
    assert group.rewards_G.tolist() == [-0.5, -0.5]
    assert group.trajectories[0].turns[0].metrics == {"format": 0}


@pytest.mark.anyio
async def test_a_failed_tournament_fails_its_group() -> None:
    def ill(*_: object) -> float:
        raise RuntimeError("the judge is ill")

    groups = TournamentGroups(
        renderer=RENDERER, conversations=[QUESTION], tournament=Tournament(FunctionPreferenceModel(ill)), group_size=2
    )
    with pytest.raises(ComparisonFailed):
        await play_group(groups[0], Says(lambda _, place: "x" * place), RolloutSettings(failure=FailFast()), seed=0)
