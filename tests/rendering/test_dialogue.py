"""Episodes rendered incrementally: sampled tokens stay, prompts extend, and what a family drops is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from engine.rendering import (
    Dialogue,
    ImagePart,
    Message,
    RenderError,
    TextPart,
    UnparsedToolCallPart,
    assistant,
    get_renderer,
    tool_result,
    user,
)
from tests.rendering import oracles
from tests.rendering.conversations import CASES, TOOLS, Case, conversations, generated, prompts_of
from tests.rendering.test_parsing import renderer_of
from tests.rendering.test_properties import every_renderer


def play(
    renderer: Any, messages: list[Any], tools: Any, history: str = "family"
) -> list[tuple[list[int], list[int], bool]]:
    """Plays a conversation with answers sampled as the family trains them: prompt, sampled tokens, whether the prompt extends."""
    turns = []
    prompts = prompts_of(messages)
    dialogue = Dialogue(renderer, prompts[0], tools=tools, history=history)  # type: ignore[arg-type]
    for n, prompt in enumerate(prompts):
        (example,) = renderer.supervised_examples(messages[: len(prompt) + 1], "last_assistant_message", tools=tools)
        sampled = example.model_input.tokens[example.weights_T > 0].tolist()
        turns.append((dialogue.prompt.tokens.tolist(), sampled, dialogue.extends_last))
        dialogue.answer(sampled)
        if n + 1 < len(prompts):
            dialogue.extend(*prompts[n + 1][len(prompt) + 1 :])
    return turns


@every_renderer
def test_sampled_tokens_stay_and_prompts_are_the_familys(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)

    @generated
    @given(conversations(case.shape))
    def check(messages: Any) -> None:
        tools = TOOLS if case.shape.most_calls else ()
        for history in ("family", "keep"):
            turns = play(renderer, messages, tools, history)
            for (prompt, sampled, _), (later, _, extends) in itertools.pairwise(turns):
                if extends:
                    assert later[: len(prompt) + len(sampled)] == prompt + sampled
                else:
                    assert history == "family"
                    assert not renderer.keeps_history
            for (prompt, _, extends), asked in zip(turns, prompts_of(messages), strict=True):
                whole = renderer.generation_prompt(asked, tools=tools).tokens.tolist()
                if renderer.has_extension_property or not extends:
                    assert prompt == whole

    check()


def test_an_answer_cut_short_gets_its_stop() -> None:
    for name in (
        "qwen3_instruct",
        "llama3",
        "deepseekv3",
        "kimi_k2_instruct",
        "role_colon",
        "glm4_7_preserve_thinking",
    ):
        renderer = renderer_of(name)
        dialogue = Dialogue(renderer, [user("x")])
        cut = renderer.vocabulary.encode("never end")
        dialogue.answer(cut)
        followed = dialogue.extend(user("y")).tokens.tolist()
        ended = renderer.generation_prompt([user("x"), assistant("never end"), user("y")]).tokens.tolist()
        assert dialogue.extends_last
        tail = tail_behind(followed, cut)
        assert tail == ended[-len(tail) :], name


def tail_behind(tokens: list[int], cut: list[int]) -> list[int]:
    at = next(n for n in range(len(tokens)) if tokens[n : n + len(cut)] == cut)
    return tokens[at + len(cut) :]


def test_a_new_question_drops_thinking_and_says_so() -> None:
    renderer = renderer_of("qwen3")
    dialogue = Dialogue(renderer, [user("x")])
    text = renderer.vocabulary
    sampled = [
        text.special_token("<think>"),
        *text.encode("\nhm\n"),
        text.special_token("</think>"),
        *text.encode("\n\nyes"),
        text.special_token("<|im_end|>"),
    ]
    dialogue.answer(sampled)
    dialogue.extend(user("y"))
    assert not dialogue.extends_last
    assert text.decode(dialogue.prompt.tokens) == (
        "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n"
    )
    kept = Dialogue(renderer, [user("x")], history="keep")
    kept.answer(sampled)
    kept.extend(user("y"))
    assert kept.extends_last
    assert kept.prompt.tokens.tolist()[-len(sampled) - 10 :] != dialogue.prompt.tokens.tolist()[-len(sampled) - 10 :]


def test_tokens_that_no_encoder_would_choose_are_kept() -> None:
    renderer = renderer_of("qwen3_instruct")
    dialogue = Dialogue(renderer, [user("x")])
    odd = [
        *[token for letter in "hello" for token in renderer.vocabulary.encode(letter)],
        renderer.vocabulary.special_token("<|im_end|>"),
    ]
    before = dialogue.prompt.tokens.tolist()
    dialogue.answer(odd)
    assert dialogue.extend(tool_result("1", name="now")).tokens.tolist()[: len(before) + len(odd)] == before + odd


def test_extending_wants_an_answer() -> None:
    dialogue = Dialogue(renderer_of("qwen3"), [user("x")])
    with pytest.raises(RuntimeError, match="answer"):
        dialogue.extend(user("y"))


def test_role_colon_leaves_the_floor_to_the_user() -> None:
    dialogue = Dialogue(renderer_of("role_colon"), [user("x")])
    dialogue.answer(renderer_of("role_colon").vocabulary.encode(" a\n\nUser:"))
    with pytest.raises(RenderError, match="user speaks"):
        dialogue.extend(assistant("b"))


def test_images_in_later_turns() -> None:
    renderer = renderer_of("qwen3_vl_instruct")
    dialogue = Dialogue(renderer, [user("x")])
    dialogue.answer([*renderer.vocabulary.encode("ok"), renderer.vocabulary.special_token("<|im_end|>")])
    prompt = dialogue.extend(user([TextPart("see "), ImagePart("https://example.org/a.png", 64, 64)]))
    assert [type(chunk).__name__ for chunk in prompt.chunks] == ["TokenChunk", "ImageChunk", "TokenChunk"]
    assert np.array_equal(prompt.chunks[0].tokens[:4], renderer.generation_prompt([user("x")]).tokens[:4])  # type: ignore[union-attr]


def test_every_case_is_played() -> None:
    assert {case.renderer for case in CASES} >= {"qwen3", "gpt_oss", "glm"}


@pytest.mark.parametrize("name", ["qwen3_instruct", "llama3", "deepseekv3", "kimi_k2_preserve_thinking", "role_colon"])
def test_a_step_encodes_what_is_new_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = renderer_of(name)
    vocabulary, encoded = renderer.vocabulary, []
    encode_batch = vocabulary.encode_batch
    monkeypatch.setattr(vocabulary, "encode_batch", lambda texts: encoded.extend(texts) or encode_batch(texts))
    dialogue = Dialogue(renderer, [user("first " * 50)])
    answer = [
        *vocabulary.encode(" ok\n\nUser:"),
        *[stop for stop in renderer.stop_sequences() if isinstance(stop, int)][:1],
    ]
    for turn in range(20):
        dialogue.answer(answer)
        encoded.clear()
        dialogue.extend(user(f"question {turn}"))
        assert sum(map(len, encoded)) < 60
    assert dialogue.prompt.length > 20 * len(answer)


@every_renderer
def test_a_call_that_could_not_be_read_is_not_lost(case: Case) -> None:
    renderer = renderer_of(case.renderer)
    broken = Message("assistant", (UnparsedToolCallPart('{"name": broken', "not JSON"),))
    assert '{"name": broken' in renderer.vocabulary.decode(
        renderer.generation_prompt([user("x"), broken, user("y")]).tokens
    )
