"""Twenty questions: the policy asks, another model answers yes or no.

    user       I think of a thing. ...
    assistant  Is it an animal?               ──▶ answerer: [system: the thing is "dog" ...] [user: Is it an animal?] ──▶ "Yes."
    user       yes
    assistant  Guess: dog

The answerer is any `Completer`: a policy of this engine, a server, a script. It is asked anew for every question, so that it sees no more than the thing and the question.
What it says counts only where it is a plain yes or no; it is asked again a few times, and then the player is told that there is no answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from engine.backends.values import Completion, SamplingParams
from engine.completion import Completer, Reply
from engine.rendering import Dialogue, Message, Renderer, ToolSpec, assistant, system, user
from engine.runtime.seeds import derive_seed
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.games.things import PROPERTIES, THINGS, property_asked

QUESTION = (
    "I think of a thing. Find out what it is in at most {turns} turns. In each turn, ask one question that can be answered with yes or no, "
    'or say "Guess: " and the thing.'
)
ANSWERER = (
    'You answer in a game of twenty questions. The thing to be guessed is "{thing}". Answer the question about it with "yes" or "no" and nothing else. '
    "Never name the thing."
)
NO_QUESTION = 'Ask one question that ends in a question mark, or say "Guess: " and the thing.'
UNCLEAR = "I cannot answer that."
LONGEST = 300
"""Characters of a question that are passed on."""

_GUESS = re.compile(r"^\W*guess\s*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_DIRECT = re.compile(r"^\W*is it (?:an? |the )?([\w -]+?)\s*\?\W*$", re.IGNORECASE)
_REPLY = re.compile(r"^\W*(yes|no)\W*$", re.IGNORECASE)


def read_reply(text: str) -> bool | None:
    """A plain yes or no; None for anything else, "yes and no" too."""
    match = _REPLY.match(text.strip()[:40])
    return None if match is None else match[1].lower() == "yes"


def _same(guess: str, thing: str) -> bool:
    words = re.sub(r"[^\w\s-]", "", guess.lower()).split()
    while words and words[0] in ("a", "an", "the"):
        words.pop(0)
    return " ".join(words) == thing.lower()


def read_turn(text: str) -> tuple[Literal["guess", "question", "neither"], str]:
    """What a player's words are, and the part that counts."""
    if match := _GUESS.search(text[:2000]):
        return "guess", match[1].strip()
    stripped = text.strip()
    if stripped.endswith("?") and len(stripped) <= LONGEST:
        return "question", stripped
    return "neither", stripped[:LONGEST]


@attrs.frozen
class TwentyRules:
    """The game."""

    turns: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    """Most turns, guesses included."""
    retries: int = attrs.field(default=2, validator=attrs.validators.ge(0))
    """How often the answerer is asked again when it says neither yes nor no."""
    answer_tokens: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Longest answer of the answerer, in tokens."""
    patience: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """What finding it in the last turn wins less than finding it in the first would; in between, in proportion."""
    penalty: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Taken for a turn that is neither a question nor a guess."""
    explain: bool = True
    """Whether the first message says how the game goes; without, it says "Ready?" alone."""

    def question(self) -> str:
        """What is said first."""
        return QUESTION.format(turns=self.turns) if self.explain else "Ready?"

    def win(self, turns: int) -> float:
        """The reward of whoever finds it in so many turns."""
        return 1.0 - self.patience * (turns - 1) / max(1, self.turns - 1)


class TwentyQuestions:
    """One game.

    Metrics each turn: `format` (a question or a guess), `unclear` (the answerer gave no yes or no). At the end `correct` and `turns`. Logs: `question`,
    `answer`; at the end `reference`.
    """

    def __init__(self, renderer: Renderer, rules: TwentyRules, answerer: Completer, thing: str, seed: int) -> None:
        self.rules = rules
        self.thing = thing
        self._renderer = renderer
        self._answerer = answerer
        self._seed = seed
        self._turns = 0
        self._said = rules.question()
        self._dialogue = Dialogue(renderer, [user(self._said)])

    async def reset(self) -> Observation:
        """How the game goes."""
        return self._observation()

    async def step(self, completion: Completion) -> Step:
        """Answers the question, or judges the guess."""
        parsed = self._dialogue.answer(completion.tokens)
        text = parsed.message.text
        kind, content = read_turn(text) if parsed.ok else ("neither", "")
        self._turns += 1
        logs: dict[str, Any] = {"question": self._said, "answer": text}
        found = self._is_found(kind, content)
        unclear = False
        if not found:
            self._said, unclear = await self._respond(kind, content)
        metrics = {"format": float(kind != "neither"), "unclear": float(unclear)}
        reward = -self.rules.penalty * (kind == "neither")
        if not found and self._turns < self.rules.turns:
            self._dialogue.extend(user(self._said))
            return Step(reward, self._observation(), metrics, logs)
        metrics |= {"correct": float(found), "turns": float(self._turns)}
        logs["reference"] = self.thing
        return Step(reward + (self.rules.win(self._turns) if found else 0.0), None, metrics, logs)

    def _is_found(self, kind: str, content: str) -> bool:
        """Also "Is it a dog?" finds the dog."""
        if kind == "guess":
            return _same(content, self.thing)
        direct = _DIRECT.match(content) if kind == "question" else None
        return direct is not None and _same(direct[1], self.thing)

    async def _respond(self, kind: str, content: str) -> tuple[str, bool]:
        """What the player is told, and whether the answerer had no answer."""
        if kind != "question":
            return ("no" if kind == "guess" else NO_QUESTION), False
        if self._turns >= self.rules.turns:
            return "", False  # nobody will hear it
        params = SamplingParams(max_tokens=self.rules.answer_tokens)
        messages = [system(ANSWERER.format(thing=self.thing)), user(content)]
        for attempt in range(1 + self.rules.retries):
            # The seed follows from the question, not from when it is asked: members that ask the same are told the same.
            seed = derive_seed(self._seed, attempt, *content.encode())
            reply = read_reply((await self._answerer.complete(messages, params=params, seed=seed)).text)
            if reply is not None:
                return ("yes" if reply else "no"), False
        return UNCLEAR, True

    def _observation(self) -> Observation:
        return Observation(self._dialogue.prompt, self._renderer.stop_sequences())


@attrs.frozen
class TwentyGroup(GroupBuilder):
    """Several games about the same thing."""

    renderer: Renderer
    rules: TwentyRules
    answerer: Completer
    thing: str
    size: int = attrs.field(validator=attrs.validators.ge(1))
    seed: int = 0
    tags: tuple[str, ...] = ("twenty_questions",)

    async def make_envs(self) -> Sequence[Env]:
        """The games."""
        return [
            TwentyQuestions(self.renderer, self.rules, self.answerer, self.thing, self.seed) for _ in range(self.size)
        ]


@attrs.frozen
class TwentyGroups:
    """A dataset: every thing in turn, in another order each time round."""

    renderer: Renderer
    answerer: Completer
    rules: TwentyRules = attrs.field(factory=TwentyRules)
    things: Sequence[str] = attrs.field(default=tuple(THINGS), validator=attrs.validators.min_len(1))
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    count: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        turn, place = divmod(index, len(self.things))
        order = list(self.things)
        random.Random(derive_seed(self.seed, turn)).shuffle(order)
        seed = derive_seed(self.seed, turn, place)
        return TwentyGroup(self.renderer, self.rules, self.answerer, order[place], self.group_size, seed)


@attrs.frozen
class KnowingAnswerer:
    """An answerer without a model: knows what `envs.games.things` says of each thing, and recognises the property that a question is about.

    Says that it does not know where a question is about none, or about several.
    """

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        params: SamplingParams,  # noqa: ARG002  (the port's)
        seed: int,  # noqa: ARG002
        tools: Sequence[ToolSpec] = (),  # noqa: ARG002
    ) -> Reply:
        """See `Completer.complete`."""
        named = re.search(r'guessed is "(.+?)"\.', messages[0].text)
        thing = THINGS.get(named[1]) if named else None
        asked = property_asked(messages[-1].text)
        direct = _DIRECT.match(messages[-1].text)
        if thing is None or (asked is None and (direct is None or direct[1] not in THINGS)):
            return Reply(assistant("I do not know."))
        return Reply(assistant("Yes." if asked in thing else "No."))


def groups(
    renderer: Renderer,
    *,
    group_size: int = 8,
    seed: int = 0,
    turns: int = 20,
    answerer: Completer | None = None,
    things: Sequence[str] | None = None,
    patience: float = 0.0,
    explain: bool = True,
) -> TwentyGroups:
    """What `envs.registry` opens as "twenty_questions"; without an answerer, one that knows the list of things."""
    rules = TwentyRules(turns, patience=patience, explain=explain)
    return TwentyGroups(renderer, answerer or KnowingAnswerer(), rules, tuple(things or THINGS), group_size, seed=seed)


# ---- players to learn from


def questions_for(things: Sequence[str]) -> dict[str, str]:
    """A question for each property that some of the things have and others have not."""
    return {
        name: f"Is it {_ADJECTIVES.get(name, name)}?"
        for name in PROPERTIES
        if 0 < sum(name in THINGS[thing] for thing in things) < len(things)
    }


def example_game(things: Sequence[str], turns: int, rng: random.Random, *, knows: float) -> list[tuple[str, str]]:
    """A game as (what was said, what was asked or guessed). At a share `knows` of the games the player halves the things that are left, and names the last one; in the
    others it asks anything, and guesses anything at the end."""
    thing = rng.choice(list(things))
    knowing = rng.random() < knows
    questions = questions_for(things)
    left, said, game = list(things), "", []
    for turn in range(turns):
        if knowing and len(left) > 1:
            name = min(
                questions, key=lambda each: (abs(2 * sum(each in THINGS[other] for other in left) - len(left)), each)
            )
        elif knowing or turn == turns - 1 or rng.random() < 0.2:
            guess = left[0] if knowing else rng.choice(list(things))
            game.append((said, f"Guess: {guess}"))
            if guess == thing:
                break
            said = "no"
            continue
        else:
            name = rng.choice(list(questions))
        game.append((said, questions[name]))
        has = name in THINGS[thing]
        left = [other for other in left if (name in THINGS[other]) == has]
        said = "yes" if has else "no"
    return game


def conversation(opening: str, game: Sequence[tuple[str, str]]) -> list[Message]:
    """A game's turns as messages."""
    return [
        message
        for number, (said, asked) in enumerate(game)
        for message in (user(said if number else opening), assistant(asked))
    ]


_ADJECTIVES = {
    "animal": "an animal",
    "plant": "a plant",
    "flies": "able to fly",
    "swims": "able to swim",
    "food": "food",
    "made": "man-made",
    "metal": "made of metal",
    "home": "found at home",
    "wheels": "on wheels",
    "hand": "small",
    "legs": "on four legs",
    "music": "an instrument",
    "worn": "worn",
    "sky": "in the sky",
}
