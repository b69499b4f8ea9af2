"""What people see of a rendering."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engine.rendering import assistant, get_renderer, user
from engine.rendering.inspection import as_page, as_terminal, sections_of, shown_tokens
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary

TALK = [user("<b> é <|im_end|>"), assistant("ok\n")]


def test_tokens_text_and_page() -> None:
    renderer = get_renderer("qwen3", byte_vocabulary(control_tokens("qwen3")))
    (example,) = renderer.supervised_examples(TALK)
    shown = list(shown_tokens(renderer.vocabulary, example.model_input, example.weights_T))
    assert len(shown) == example.model_input.length
    assert "".join(token.text for token in shown) == renderer.vocabulary.decode(example.model_input.tokens)
    assert sum(token.weight for token in shown) == example.weights_T.sum()
    assert [token.text for token in shown if token.control].count("<|im_end|>") == 2
    page = as_page("a & b", renderer.vocabulary, sections_of([example]))
    assert page.count('class="t w') == example.model_input.length + 4
    assert page.count("<tr><td>") == example.model_input.length
    assert "&lt;|im_end|&gt;" in page
    assert "<b> " not in page
    assert "a &amp; b" in page
    terminal = as_terminal(renderer.vocabulary, example.model_input, example.weights_T)
    assert any("green" in str(span.style) for span in terminal.spans)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
    )
    byte_vocabulary(control_tokens("qwen3")).full.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-m", "recipes.show_rendering", "--renderer", "qwen3", "--tokenizer", str(tmp_path)]
    done = subprocess.run(
        [*command, "--conversation", str(tmp_path / "chat.jsonl"), "--html", str(tmp_path / "page.html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "supervised example" in done.stdout
    assert "<title>qwen3 · chat.jsonl</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "chat.jsonl").write_text('[{"role": "robot"}]')
    broken = subprocess.run(
        [*command, "--conversation", str(tmp_path / "chat.jsonl")], capture_output=True, text=True, check=False
    )
    assert broken.returncode != 0
    assert "line 1: message 0, field 'role'" in broken.stderr


def test_a_wrong_name_or_file_is_one_line_at_once(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text("[]")
    command = [sys.executable, "-m", "recipes.show_rendering"]
    for renderer, conversation, line in (
        ("qwen9", "chat.jsonl", "show_rendering: no renderer is called 'qwen9'; there are chatml"),
        ("qwen3", "nope.jsonl", "nope.jsonl is not a file: --conversation wants one with a conversation a line"),
    ):
        flags = ["--renderer", renderer, "--conversation", str(tmp_path / conversation)]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert line in done.stderr
        assert "Traceback" not in done.stderr
        assert "huggingface" not in done.stderr.lower()
