"""Shows what a renderer makes of a conversation: every token, what is trained, and the control tokens.

    python -m recipes.show_rendering --renderer qwen3 --conversation chat.jsonl
    python -m recipes.show_rendering --renderer gpt_oss --conversation chat.jsonl --train-on last_assistant_turn --html page.html

A line of the file is a conversation: a list of OpenAI-style messages, or an object with `messages` and perhaps `tools`. Without `--tokenizer`, that
of a model of the family is taken from the Hugging Face hub; where it cannot be had, bytes and the family's control tokens stand in for it, which
shows the format but not the real ids.
"""

from __future__ import annotations

import json
from pathlib import Path

import attrs

from engine.rendering.supervision import TrainOnWhat
from recipes import cli
from recipes.terminal import warn


@attrs.frozen
class Config:
    """What to show."""

    conversation: Path
    """A file of conversations, one JSON value a line."""
    renderer: str
    """Name of the renderer."""
    tokenizer: str | None = None
    """A model's name, a directory or a tokenizer.json."""
    train_on: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES
    """What has weight 1."""
    html: Path | None = None
    """A page to write besides."""
    limit: int = 5
    """Conversations to show at most."""


def main(config: Config) -> None:
    """Prints, and writes the page."""
    from rich.console import Console

    from engine.rendering import RenderError, get_renderer, renderer_names
    from engine.rendering.inspection import as_page, as_terminal, sections_of

    # Before a tokenizer is fetched for it: that can take a while.
    if not config.conversation.is_file():
        raise RenderError(f"{config.conversation} is not a file: --conversation wants one with a conversation a line")
    if config.renderer not in renderer_names():
        raise RenderError(f"no renderer is called {config.renderer!r}; there are {', '.join(renderer_names())}")
    renderer = get_renderer(config.renderer, _vocabulary(config))
    console = Console(soft_wrap=True, highlight=False)
    pages = []
    for number, (messages, tools) in enumerate(_conversations(config), start=1):
        prompt = renderer.generation_prompt(
            messages[:-1] if messages[-1].role == "assistant" else messages, tools=tools
        )
        examples = renderer.supervised_examples(messages, config.train_on, tools=tools)
        for heading, model_input, weights_T in sections_of(examples, prompt):
            trained = "" if weights_T is None else f", {int(weights_T.sum())} trained"
            console.rule(f"conversation {number}: {heading.lower()}, {model_input.length} positions{trained}")
            console.print(as_terminal(renderer.vocabulary, model_input, weights_T))
            pages.append((f"Conversation {number}: {heading}", model_input, weights_T))
    if config.html is not None:
        config.html.write_text(
            as_page(f"{config.renderer} · {config.conversation.name}", renderer.vocabulary, pages), encoding="utf-8"
        )
        console.print(f"wrote {config.html}")


def _vocabulary(config: Config):  # type: ignore[no-untyped-def]
    from engine.rendering import load_vocabulary
    from engine.rendering.models import example_model
    from engine.rendering.registry import control_tokens
    from engine.rendering.vocabulary import byte_vocabulary

    if config.tokenizer is not None:
        return load_vocabulary(config.tokenizer)
    model = example_model(config.renderer)
    try:
        return load_vocabulary(model)
    except OSError as error:
        warn(f"show_rendering: {error}\nshow_rendering: bytes stand in for its tokens")
        return byte_vocabulary(control_tokens(config.renderer))


def _conversations(config: Config):  # type: ignore[no-untyped-def]
    from engine.rendering import ToolSpec, from_openai

    lines = [line for line in config.conversation.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines[: config.limit], start=1):
        try:
            found = json.loads(line)
            fields = found if isinstance(found, dict) else {"messages": found}
            tools = [ToolSpec.from_openai(tool) for tool in fields.get("tools") or ()]
            yield from_openai(fields["messages"]), tools
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{config.conversation}, line {number}: {error}") from error


if __name__ == "__main__":
    cli.main(main, Config)
