"""Twenty questions: who answers, how strictly, and what the player is told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest

from engine.backends import BackendError, SampleRequest, SamplingParams
from engine.completion import Completer, PolicyCompleter, ScriptedCompleter
from engine.rendering import Message, user
from engine.runtime.simulation import simulate
from engine.training.trajectories import Trajectory
from envs.games.things import PROPERTIES, THINGS, property_asked
from envs.games.twenty_questions import (
    UNCLEAR,
    KnowingAnswerer,
    TwentyGroup,
    TwentyGroups,
    TwentyRules,
    conversation,
    example_game,
    questions_for,
    read_reply,
    read_turn,
)
from envs.rollout import GroupFailed, RolloutSettings, play_group
from tests.envs.games.tables import RENDERER, Speaker


def played(
    answerer: Completer, *says: str, thing: str = "dog", rules: TwentyRules | None = None, size: int = 1
) -> list[Trajectory]:
    rules = rules or TwentyRules(turns=6)
    group = TwentyGroup(RENDERER, rules, answerer, thing, size)

    def answer(prompt: str, request: SampleRequest) -> str:
        return says[prompt.count("Assistant:") - 1]

    settings = RolloutSettings(SamplingParams(max_tokens=200))
    program = simulate(lambda: play_group(group, Speaker(answer, lambda request: 0.0), settings, 1))
    return list(program.unwrap().trajectories)


def told(game: Trajectory) -> list[str]:
    return [turn.logs["question"] for turn in game.turns[1:]]


def test_a_game_with_the_answerer_that_knows() -> None:
    (game,) = played(KnowingAnswerer(), "Is it alive?", "Is it a cat?", "Can it fly?", "Guess: the Dog!")
    assert told(game) == ["yes", "no", "no"]
    assert game.reward == 1.0
    assert game.turns[-1].metrics == {"format": 1.0, "unclear": 0.0, "correct": 1.0, "turns": 4.0}
    assert game.turns[-1].logs["reference"] == "dog"


def test_naming_it_in_a_question_finds_it_too() -> None:
    (game,) = played(KnowingAnswerer(), "Is it a dog?")
    assert (game.reward, len(game.turns)) == (1.0, 1)


def test_turns_run_out_and_the_last_question_is_not_asked() -> None:
    answerer = ScriptedCompleter(lambda messages: "yes")
    (game,) = played(answerer, *["Is it red?"] * 6)
    assert (game.reward, len(game.turns), len(answerer.asked)) == (0.0, 6, 5)
    assert game.turns[-1].metrics["correct"] == 0


def test_wrong_guesses_and_what_is_neither_cost_a_turn() -> None:
    rules = TwentyRules(turns=4, penalty=0.1, patience=0.5)
    (game,) = played(KnowingAnswerer(), "Guess: cat", "I give up", "Tell me.", "Guess: dog", rules=rules)
    assert told(game)[0] == "no"
    assert told(game)[1:] == ['Ask one question that ends in a question mark, or say "Guess: " and the thing.'] * 2
    assert [turn.metrics["format"] for turn in game.turns] == [1, 0, 0, 1]
    assert game.reward == pytest.approx(0.5 - 0.2)


def test_the_answerer_is_asked_again_until_it_says_yes_or_no() -> None:
    answerer = ScriptedCompleter(["Well, it depends.", "It is a dog, so yes", "No."])
    (game,) = played(answerer, "Is it big?", "Guess: dog")
    assert told(game) == ["no"]
    assert len(answerer.asked) == 3
    system, question = answerer.asked[0]
    assert '"dog"' in system.text
    assert question.text == "Is it big?"


def test_without_an_answer_the_player_is_told_so_and_it_is_counted() -> None:
    answerer = ScriptedCompleter(lambda messages: "maybe")
    (game,) = played(answerer, "Is it big?", "Guess: dog", rules=TwentyRules(turns=3, retries=1))
    assert told(game) == [UNCLEAR]
    assert [turn.metrics["unclear"] for turn in game.turns] == [1, 0]
    assert len(answerer.asked) == 2


def test_an_answerer_that_fails_fails_the_group() -> None:
    with pytest.raises(GroupFailed, match="BackendError: the script has 0 answers"):
        played(ScriptedCompleter([]), "Is it big?", "Guess: dog")
    assert issubclass(BackendError, Exception)


def test_a_policy_can_answer() -> None:
    """Another model of this engine, through its own renderer; the same question gets the same seed, so members that ask the same are told the same."""
    seeds: list[int] = []

    def answer(prompt: str, request: SampleRequest) -> str:
        seeds.append(request.seed)
        assert 'guessed is "dog"' in prompt
        return "Yes." if "alive" in prompt else "no"

    completer = PolicyCompleter(Speaker(answer), RENDERER)
    games = played(completer, "Is it alive?", "Is it red?", "Guess: dog", size=3)
    assert [told(game) for game in games] == [["yes", "no"]] * 3
    assert len(seeds) == 6
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("text", ["yes", "Yes.", " YES! ", "**yes**", "“Yes”"])
def test_plain_yes(text: str) -> None:
    assert read_reply(text) is True


@pytest.mark.parametrize("text", ["", "yes and no", "maybe", "no, it is not", "not", "yesno", "y", "yes" * 50])
def test_what_is_no_reply(text: str) -> None:
    assert read_reply(text) is None
    assert read_reply("no.") is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is it red?", ("question", "Is it red?")),
        ("Guess: a cat", ("guess", "a cat")),
        ("I think I know.\nguess:cat", ("guess", "cat")),
        ("I guess it is a cat", ("neither", "I guess it is a cat")),
        ("What " * 100 + "?", ("neither", ("What " * 100 + "?")[:300])),
        ("", ("neither", "")),
    ],
)
def test_what_a_turn_is(text: str, expected: tuple[str, str]) -> None:
    assert read_turn(text) == expected


# ---- the list of things


def test_things_differ_and_have_known_properties() -> None:
    assert len(set(THINGS.values())) == len(THINGS) >= 60
    assert {name for properties in THINGS.values() for name in properties} <= set(PROPERTIES)


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Is it an animal?", "animal"),
        ("Can you eat it?", "food"),
        ("Is it bigger than a person?", "big"),
        ("Does it have four legs?", "legs"),
        ("Would you find it IN A HOUSE?", "home"),
        ("Is it an animal or a plant?", None),
        ("Is it beautiful?", None),
    ],
)
def test_the_property_that_a_question_is_about(question: str, name: str | None) -> None:
    assert property_asked(question) == name


def reply(thing: str, question: str) -> str:
    group = TwentyGroup(RENDERER, TwentyRules(), KnowingAnswerer(), thing, 1)
    scripted = ScriptedCompleter(lambda messages: "yes")
    played(scripted, question, f"Guess: {thing}", thing=thing)
    messages: Sequence[Message] = scripted.asked[0]
    ask: Callable[..., object] = group.answerer.complete
    return simulate(lambda: ask(messages, params=SamplingParams(), seed=0)).unwrap().text  # type: ignore[attr-defined, arg-type]


def test_the_answerer_that_knows() -> None:
    assert reply("shark", "Does it swim?") == "Yes."
    assert reply("shark", "Is it made of metal?") == "No."
    assert reply("shark", "Is it a dog?") == "No."
    assert reply("shark", "Is it nice?") == "I do not know."
    stranger = [user("What?"), user("Is it big?")]
    answer = simulate(lambda: KnowingAnswerer().complete(stranger, params=SamplingParams(), seed=0)).unwrap()
    assert answer.text == "I do not know."


def test_every_thing_comes_once_before_any_comes_again() -> None:
    groups = TwentyGroups(RENDERER, KnowingAnswerer(), things=("dog", "cat", "sun"), seed=1)
    things = [groups[index].thing for index in range(12)]  # type: ignore[attr-defined]
    for start in range(0, 12, 3):
        assert sorted(things[start : start + 3]) == ["cat", "dog", "sun"]
    assert len({tuple(things[start : start + 3]) for start in range(0, 12, 3)}) > 1


# ---- example games


def test_every_question_of_the_examples_is_understood_by_the_answerer_that_knows() -> None:
    for name, question in questions_for(tuple(THINGS)).items():
        assert property_asked(question) == name, question


def test_example_games() -> None:
    things = ("dog", "eagle", "shark", "apple", "car", "hammer", "lamp", "sun")
    for knows, least, most in ((0.0, 0.02, 0.3), (1.0, 1.0, 1.0)):
        rng = random.Random(1)
        found = 0
        for _ in range(200):
            game = example_game(things, 6, rng, knows=knows)
            messages = conversation("Ready?", game)
            assert [message.role for message in messages] == ["user", "assistant"] * len(game)
            assert messages[0].text == "Ready?"
            thing = game[-1][1].removeprefix("Guess: ")
            if len(game) < 6 or knows == 1.0:  # found: what was said on the way is true of it
                found += 1
                for (_, asked), (said, _) in itertools.pairwise(game):
                    if asked.endswith("?"):
                        assert said == ("yes" if property_asked(asked) in THINGS[thing] else "no")
        assert least <= found / 200 <= most
