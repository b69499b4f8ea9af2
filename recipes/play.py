"""Play an environment by hand: see what a model would be asked, answer, and see the reward.

    python -m recipes.play --list                                                    # what there is
    python -m recipes.play --env guess_number
    python -m recipes.play --env tic_tac_toe                                         # against a perfect player; --set opponent=self for both sides
    python -m recipes.play --env tic_tac_toe --set opponent=random seat=1
    python -m recipes.play --env twenty_questions --model smollm2                    # a model answers
    printf '50\n25\n' | python -m recipes.play --env guess_number

An answer is a line; one of several lines stands between two lines of \"\"\". Tools are called by lines such as  /call calculate {"left": 2, "operation": "add", "right": 3}. Ctrl-D leaves the
game, Ctrl-C too; everything the environment holds is freed.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs

from recipes import cli
from recipes.models import ModelConfig
from recipes.ports import DEFAULT, Ports
from recipes.terminal import grey, say

TO_PLAY_AGAINST: Mapping[str, Mapping[str, Any]] = {"tic_tac_toe": {"opponent": "minimax"}}
"""Options of environments that are more fun with them than without, unless one says otherwise."""
BLOCK = '"""'
_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class Config(ModelConfig):
    """Play an environment by hand. An answer is a line, or lines between two lines of three double quotes; Ctrl-D leaves the game."""

    env: str | None = None
    """Which environment; --list shows them."""
    list: bool = False
    """Show what there is, and what may be set."""
    set: tuple[str, ...] = ()
    """Options of the environment, as name=value; values as JSON, or as text."""
    problem: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Which problem comes first."""
    problems: int = attrs.field(default=1, validator=_positive)
    """How many, one after another."""
    model: str | None = None  # type: ignore[assignment]  # here, none is needed
    """Who answers or plays the other seats, where the environment takes a model: smollm2, or one by name or path. None: whom the environment itself has."""
    max_tokens: int = attrs.field(default=64, validator=_positive)
    """Longest answer of that model, in tokens."""
    threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    """CPU threads of that model; None: torch's choice."""
    seed: int = 0
    """Seed of the problems."""

    def __attrs_post_init__(self) -> None:
        if not self.list and self.env is None:
            raise ValueError("env: which one is to be played? --list shows what there is")


async def run(config: Config, ports: Ports = DEFAULT) -> None:
    """Plays."""
    if config.list or config.env is None:
        say("\n".join(listed()))
        return
    left = False
    with anyio.CancelScope() as scope:
        async with cli.stop_on_interrupt(scope.cancel, lambda _: None):
            left = await _play(config, config.env, ports)
    if left or scope.cancelled_caught:
        say("\nleft the game")


async def _play(config: Config, env: str, ports: Ports) -> bool:
    """Plays the problems; whether the player left before they were played."""
    from envs.by_hand.format import make_format
    from envs.by_hand.playing import LeftTheGame, play_by_hand
    from envs.registry import open_env

    terminal = Console(partial(say, end=""))
    renderer = make_format()
    rewards: list[float] = []
    with tempfile.TemporaryDirectory(prefix="callsheet-play-") as images:
        async with (
            _options(config, env, ports, Path(images)) as options,
            open_env(env, renderer, group_size=1, seed=config.seed, **options) as groups,
        ):
            if config.problem + config.problems > len(groups):
                raise ValueError(f"problem: {env} has {len(groups)} problems, numbered from 0")
            for index in range(config.problem, config.problem + config.problems):
                try:
                    group = await play_by_hand(groups[index], renderer, terminal, images=Path(images))
                except LeftTheGame:
                    return True
                rewards += group.rewards_G.tolist()
                say(f"game over: {'  '.join(f'{reward:g}' for reward in group.rewards_G)}")
    if len(rewards) > 1 and config.problems > 1:
        say(f"mean reward {sum(rewards) / len(rewards):.3f} of {len(rewards)}")
    return False


def listed() -> list[str]:
    """Environments with their options, a line each."""
    from envs.registry import envs

    lines = []
    for name, entry in envs().items():
        lines.append(f"{name:<20} {entry.summary}")
        try:
            options = entry.options()
        except ImportError as error:
            lines.append(f"{'':<20} {error}")
            continue
        shown = [f"{option}={parameter.default!r}" for option, parameter in options.items() if _settable(parameter)]
        if shown:
            lines.append(f"{'':<20} --set {' '.join(shown)}")
    return lines


def _settable(parameter: Any) -> bool:
    return isinstance(parameter.default, str | int | float | bool) or parameter.default is None


@asynccontextmanager
async def _options(config: Config, env: str, ports: Ports, directory: Path) -> AsyncIterator[dict[str, Any]]:
    """What the environment is opened with; with the model, where one was asked for."""
    from engine.backends.values import SamplingParams
    from envs.registry import env_entry

    options = {**TO_PLAY_AGAINST.get(env, {}), **parse_options(config.set)}
    if config.model is None:
        yield options
        return
    taken = env_entry(env).options()
    place = next((name for name in ("answerer", "model") if name in taken), None)
    if place is None:
        raise ValueError(f"model: {env} has no place for one")
    async with ports.open_completer(config, directory, seed=config.seed) as completer:
        options[place] = completer
        if "opponent" in taken:
            options["opponent"] = "model"
        if "params" in taken:
            options["params"] = SamplingParams(config.max_tokens)
        yield options


def parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` pairs. A value that is JSON is that, any other is text. Raises ValueError for what is no pair."""
    options: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"set: {pair!r} is not name=value")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


# ---- the terminal


@attrs.define
class Console:
    """Standard input and output. Reading waits without a thread, so that leaving never hangs."""

    write: Callable[[str], None]
    input: int = 0
    """File descriptor that is read."""
    _kept: bytes = b""
    _ended: bool = False

    def show(self, text: str, kind: str = "") -> None:
        """What is told is grey where colours can be shown."""
        self.write(grey(text) if kind == "told" else text)

    async def read(self) -> str | None:
        """A line, or lines between two lines of three quotes."""
        line = await self._line()
        if line is None or line.strip() != BLOCK:
            self._echo(line)
            return line
        lines: list[str] = []
        while (line := await self._line()) is not None and line.strip() != BLOCK:
            lines.append(line)
        self._echo("\n".join(lines))
        return "\n".join(lines)

    def _echo(self, text: str | None) -> None:
        """A terminal shows what is typed; where the input is a file, so that the output reads as a game, we do."""
        if text is not None and not os.isatty(self.input):
            self.write(f"{text}\n")

    async def _line(self) -> str | None:
        while b"\n" not in self._kept and not self._ended:
            if not stat.S_ISREG(os.fstat(self.input).st_mode):  # a file never makes anybody wait
                await anyio.wait_readable(self.input)
            read = os.read(self.input, 65536)
            self._ended = not read
            self._kept += read
        if not self._kept:
            return None
        line, _, self._kept = self._kept.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")


if __name__ == "__main__":
    cli.main(run, Config)
