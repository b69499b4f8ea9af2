"""The inside of the TextArena games: what runs in a worker process, and what goes in and out.

A game is told to a worker as a whole each time: which one, its seed, and all moves so far. The worker that has the game in mind makes the last move; any other plays it
again from the start. So a worker may die, or be killed over its budget, and no game is lost.

TextArena draws from Python's and NumPy's global generators. Each game has a state of them of its own here, put in place around its calls, so that games that are
played at the same time, in any order, do not disturb each other, nor anybody else in the process.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

MOST_GAMES = 512
"""Games that a worker keeps in mind."""


class ArenaError(Exception):
    """A game that cannot be played here, and why."""


@attrs.frozen
class ArenaSpec:
    """A game of TextArena."""

    game: str
    """The game's id in TextArena, `Nim-v0` say."""
    players: int
    seed: int
    options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    """Keywords of the game's own class, in place of those it is registered with."""

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What tells games apart."""
        return self.game, self.players, self.seed, repr(sorted(self.options.items()))


@attrs.frozen
class Heard:
    """A message to a player."""

    sender: str
    text: str
    kind: str
    """TextArena's: prompt, player_action, game_board, ..."""


@attrs.frozen
class Position:
    """A game after some moves."""

    player: int | None
    """Who is to move; None: the game is over."""
    heard: tuple[Heard, ...] = ()
    """What that player has been told since it moved last."""
    rewards: tuple[float, ...] | None = None
    """The players' rewards, in their order; None while the game goes on."""
    illegal: tuple[int, ...] = ()
    """Moves that were refused so far, by player."""
    out: tuple[int, ...] = ()
    """Players that are eliminated."""
    broken: str = ""
    """What the game raised when it was given the last move."""


@attrs.define
class _Live:
    """A game in a worker's mind."""

    env: Any
    wrappers: list[Any]
    randomness: tuple[Any, Any]
    position: Position = Position(None)
    illegal: list[int] = attrs.field(factory=list)


_live: OrderedDict[tuple[Any, ...], _Live] = OrderedDict()


def advance(spec: ArenaSpec, moves: tuple[str, ...]) -> Position:
    """The position after these moves. Raises ArenaError where the game cannot be begun."""
    game = _live.pop((spec.key, moves[:-1]), None) if moves else None
    if game is None:
        game = _begin(spec)
        for move in moves[:-1]:
            _move(game, spec, move)
    if moves:
        _move(game, spec, moves[-1])
    if game.position.player is not None:
        _live[spec.key, moves] = game
        while len(_live) > MOST_GAMES:
            _live.popitem(last=False)
    return game.position


def _begin(spec: ArenaSpec) -> _Live:
    import textarena
    from textarena.envs.registration import ENV_REGISTRY

    if spec.game not in ENV_REGISTRY:
        near = ", ".join(difflib.get_close_matches(spec.game, ENV_REGISTRY, n=3))
        raise ArenaError(f"TextArena has no game {spec.game!r}{f'; did you mean {near}?' if near else ''}")
    with _own_randomness((spec.seed, spec.seed % 2**32)) as state, _quietly():
        try:
            env: Any = textarena.make(spec.game, **spec.options)
            wrappers = []
            while isinstance(env, textarena.Wrapper):
                wrappers.append(env)
                env = env.env
            env.reset(num_players=spec.players, seed=spec.seed % 2**32)
            game = _Live(env, [w for w in wrappers if isinstance(w, textarena.ActionWrapper)], state)
            game.illegal = [0] * spec.players
            game.position = _position(game, spec)
        except LookupError as error:
            raise ArenaError(f"{spec.game} needs data that is downloaded: {_first_line(error)}") from error
        except (ImportError, SyntaxError, OSError) as error:
            raise ArenaError(
                f"{spec.game} cannot be played here: {type(error).__name__}: {_first_line(error)}"
            ) from error
        except (AssertionError, TypeError, ValueError, AttributeError) as error:
            raise ArenaError(
                f"{spec.game} cannot be begun with {spec.players} player(s) and options {dict(spec.options)}: {_first_line(error)}"
            ) from error
        game.randomness = _randomness()
    return game


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip(" *")]
    return " ".join(line.strip() for line in lines[:3]) or type(error).__name__


def _move(game: _Live, spec: ArenaSpec, move: str) -> None:
    mover = game.position.player
    if mover is None:
        raise ArenaError(f"{spec.game} is over; it cannot be given another move")
    before = getattr(game.env.state, "error_count", 0)
    with _own_randomness(game.randomness), _quietly():
        try:
            action = move
            for wrapper in game.wrappers:
                action = wrapper.action(action)
            game.env.step(action)
            if _was_refused(game, mover, before):
                game.illegal[mover] += 1
            game.position = _position(game, spec)
        except Exception as error:  # noqa: BLE001  (the game's own bugs: whoever found one has moved illegally)
            game.illegal[mover] += 1
            game.position = Position(
                None,
                rewards=_forfeited(mover, spec.players),
                illegal=tuple(game.illegal),
                broken=f"{type(error).__name__}: {_first_line(error)}",
            )
        game.randomness = _randomness()


def _forfeited(mover: int, players: int) -> tuple[float, ...]:
    others = players - 1
    return tuple(-1.0 if player == mover else 1.0 / others for player in range(players))


def _was_refused(game: _Live, mover: int, before: int) -> bool:
    state = game.env.state
    told = getattr(state, "game_info", None) or {}
    lost_by_it = bool(told.get(mover, {}).get("invalid_move")) if isinstance(told.get(mover, {}), dict) else False
    return getattr(state, "error_count", 0) > before or lost_by_it


def _position(game: _Live, spec: ArenaSpec) -> Position:
    state = game.env.state
    illegal, out = tuple(game.illegal), tuple(getattr(state, "elimination_order", ()))
    if state.done:
        return Position(None, rewards=_rewards(game.env, spec.players), illegal=illegal, out=out)
    player, items = game.env.get_observation()
    heard = [(item[0], _heard(state, item)) for item in items]
    # A player need not be told what it has said itself.
    news = tuple(each for sender, each in heard if sender != player or each.kind != "player_action")
    return Position(int(player), news, None, illegal, out)


def _heard(state: Any, item: Any) -> Heard:
    sender, text, kind = item
    if isinstance(kind, str):  # a game's slip
        text, kind = kind, text
    name = "GAME" if sender == -1 else str(state.role_mapping.get(sender, f"Player {sender}"))
    return Heard(name, str(text), str(getattr(kind, "name", "game_message")).lower())


def _rewards(env: Any, players: int) -> tuple[float, ...]:
    """What TextArena gives, as numbers. A few of its games mix up a refusal's reason and its reward: that is the loss it should have been."""
    given = env.state.rewards or {}
    return tuple(
        float(value) if isinstance(value := given.get(player, 0.0), int | float) else -1.0 for player in range(players)
    )


# ---- global state of the process


def _randomness() -> tuple[Any, Any]:
    import numpy as np

    return random.getstate(), np.random.get_state()  # noqa: NPY002  (TextArena draws from it)


@contextlib.contextmanager
def _own_randomness(state: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The global generators in this state, or seeded with these two numbers; afterwards as they were."""
    import numpy as np

    outside = _randomness()
    try:
        if isinstance(state[0], int):
            random.seed(state[0])
            np.random.seed(state[1])  # noqa: NPY002
        else:
            random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002
        yield state
    finally:
        random.setstate(outside[0])
        np.random.set_state(outside[1])  # noqa: NPY002


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Some games print."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
