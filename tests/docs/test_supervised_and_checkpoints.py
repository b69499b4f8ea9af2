"""docs/supervised.md and docs/checkpoints.md: their code runs, from top to bottom, and prints what the pages say; the flags they name exist."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from recipes import chat_sl, checkpoints, export, mirror
from recipes.flags import parse

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:```text\n(?P<output>.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


def run(page: str, blocks: int) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert len(found) == text.count("```python\n") == blocks
    names: dict[str, Any] = {"__name__": page}
    for number, block in enumerate(found, 1):
        line = text[: block.start("code")].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block["code"], f"docs/{page}", "exec", dont_inherit=True), names)
        assert printed.getvalue() == (block["output"] or ""), f"block {number}"


def test_the_supervised_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("supervised.md", 5)


@pytest.mark.local
def test_the_checkpoints_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from tokenizers import Tokenizer, models

    from engine.backends.local import tiny_llama

    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(64)}, unk_token="w0"))
    tiny_llama(tmp_path / "a-small-model", tokenizer, hidden=16, layers=1, heads=2, context=32)
    monkeypatch.chdir(tmp_path)
    run("checkpoints.md", 2)


@pytest.mark.parametrize("page", ["supervised.md", "checkpoints.md"])
def test_the_commands_have_the_flags_that_the_pages_name(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    configs: dict[str, Any] = {
        "chat_sl": chat_sl.Config,
        "checkpoints": checkpoints.Config,
        "export": export.Config,
        "mirror": mirror.Config,
    }
    commands = re.findall(r"python -m recipes\.(\w+) (-[^\n#`]*)", text)
    assert len(commands) >= 3
    for recipe, flags in commands:
        if recipe in configs:
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', flags.partition("   ")[0])]
            parse(configs[recipe], words, recipe)
    named = set(re.findall(r"--[a-z][a-z-]*(?:\.[a-z-]+)?", text))
    help_of = io.StringIO()
    for config in configs.values():
        with contextlib.redirect_stdout(help_of), pytest.raises(SystemExit):
            parse(config, ["--help"], "command")
    missing = sorted(flag for flag in named if flag not in help_of.getvalue())
    assert missing == []
