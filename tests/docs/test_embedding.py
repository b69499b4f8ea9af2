"""docs/embedding.md: its code runs, from top to bottom, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:```text\n(?P<output>.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def a_small_model_by_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of the name that the page opens comes before the one on the Hugging Face Hub: the code runs as it stands, offline."""
    pytest.importorskip("torch")
    from tokenizers import Tokenizer, models

    from engine.backends.local import tiny_llama

    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(64)}, unk_token="w0"))
    tiny_llama(
        tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct", tokenizer, hidden=16, layers=1, heads=2, context=32
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.local
@pytest.mark.usefixtures("a_small_model_by_that_name")
def test_the_page_runs() -> None:
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == PAGE.count("```python\n") == 8
    assert sum(block["output"] is not None for block in blocks) == PAGE.count("```text\n") == 6
    names: dict[str, Any] = {"__name__": "embedding"}
    for number, block in enumerate(blocks, 1):
        line = PAGE[: block.start("code")].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # The empty lines make a traceback show the line of the page.
            exec(compile("\n" * line + block["code"], "docs/embedding.md", "exec", dont_inherit=True), names)
        assert printed.getvalue() == (block["output"] or ""), f"block {number}"
