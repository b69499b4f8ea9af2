"""Properties 2 to 4, the masks, and the safety of control tokens, for every renderer over generated conversations."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.values import ModelInput
from engine.rendering import Message, RenderError, ToolCallPart, TrainOnWhat, assistant, get_renderer, user
from tests.rendering import oracles
from tests.rendering.conversations import CASES, TOOLS, Case, conversations, generated, hostile_text, prompts_of

BY_NAME = list({case.renderer: case for case in reversed(CASES)}.values())[::-1]
every_renderer = pytest.mark.parametrize("case", BY_NAME, ids=lambda case: case.renderer)


def _tools(case: Case, messages: Any) -> Any:
    return TOOLS if case.shape.most_calls else ()


def comparable(message: Message, case: Case) -> Message:
    """A message as the family can say it: without ids where it writes none."""
    if case.has_ids:
        return message
    parts = [attrs.evolve(part, id=None) if isinstance(part, ToolCallPart) else part for part in message.content]
    return attrs.evolve(message, content=tuple(parts))


@every_renderer
def test_examples_start_with_the_prompt_and_parse_back(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)

    @generated
    @given(conversations(case.shape))
    def check(messages: Any) -> None:
        tools = _tools(case, messages)
        for prompt in prompts_of(messages):
            answered = messages[: len(prompt) + 1]
            (example,) = renderer.supervised_examples(answered, TrainOnWhat.LAST_ASSISTANT_MESSAGE, tools=tools)
            asked = renderer.generation_prompt(prompt, tools=tools).tokens
            tokens, weights = example.model_input.tokens, example.weights_T
            assert len(tokens) == len(weights)
            assert tokens[: len(asked)].tolist() == asked.tolist()
            assert not weights[: len(asked)].any()
            trained = tokens[weights > 0].tolist()
            assert trained == tokens[len(asked) : len(asked) + len(trained)].tolist()
            parsed = renderer.parse(trained, tools=tools, after_tool=prompt[-1].role == "tool")
            assert parsed.failures == ()
            assert parsed.termination == "stop_sequence"
            assert comparable(parsed.message, case) == comparable(answered[-1], case)

    check()


@every_renderer
def test_every_answer_is_trained_as_it_will_be_sampled(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)

    @generated
    @given(conversations(case.shape))
    def check(messages: Any) -> None:
        tools = _tools(case, messages)
        examples = renderer.supervised_examples(messages, tools=tools)
        for prompt in prompts_of(messages):
            (single,) = renderer.supervised_examples(messages[: len(prompt) + 1], "last_assistant_message", tools=tools)
            tokens = single.model_input.tokens
            end = int(np.flatnonzero(single.weights_T)[-1]) + 1
            start = int(np.flatnonzero(single.weights_T)[0])
            hits = [
                example
                for example in examples
                if example.model_input.tokens[:end].tolist() == tokens[:end].tolist()
                and example.weights_T[start:end].all()
            ]
            assert len(hits) == 1
        trained = sum(int(example.weights_T.sum()) for example in examples)
        alone = [
            renderer.supervised_examples(messages[: len(p) + 1], "last_assistant_message", tools=tools)[0]
            for p in prompts_of(messages)
        ]
        assert trained == sum(int(example.weights_T.sum()) for example in alone)

    check()


@every_renderer
def test_what_is_trained(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)

    @generated
    @given(conversations(case.shape), st.data())
    def check(messages: Any, data: Any) -> None:
        tools = _tools(case, messages)
        weights = {}
        for train_on in TrainOnWhat:
            marked = messages
            if train_on is TrainOnWhat.CUSTOMIZED:
                marked = [attrs.evolve(message, trainable=message.role == "assistant") for message in messages]
            examples = renderer.supervised_examples(marked, train_on, tools=tools)
            for example in examples:
                assert example.weights_T.shape == (example.model_input.length,)
                assert set(example.weights_T.tolist()) <= {0.0, 1.0}
            weights[train_on] = examples
        assert weights[TrainOnWhat.CUSTOMIZED] == weights[TrainOnWhat.ALL_ASSISTANT_MESSAGES]
        (whole,) = weights[TrainOnWhat.ALL_TOKENS]
        assert whole.weights_T.all()
        (every,) = weights[TrainOnWhat.ALL_MESSAGES]
        (others,) = weights[TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES]
        (last,) = weights[TrainOnWhat.LAST_ASSISTANT_MESSAGE]
        assert every.model_input == others.model_input == whole.model_input == last.model_input
        assert not (others.weights_T > every.weights_T).any()
        assert not (others.weights_T * last.weights_T).any()
        assert not (last.weights_T > every.weights_T).any()

    check()


@every_renderer
def test_extension_holds_where_it_is_claimed(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)
    if not renderer.has_extension_property:
        pytest.skip("not claimed")

    @generated
    @given(conversations(case.shape))
    def check(messages: Any) -> None:
        tools = _tools(case, messages)
        before: list[int] = []
        for prompt in prompts_of(messages):
            asked = renderer.generation_prompt(prompt, tools=tools).tokens.tolist()
            assert asked[: len(before)] == before
            (example,) = renderer.supervised_examples(
                messages[: len(prompt) + 1], "last_assistant_message", tools=tools
            )
            before = example.model_input.tokens[: int(np.flatnonzero(example.weights_T)[-1]) + 1].tolist()

    check()


@every_renderer
def test_text_never_becomes_a_control_token(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)
    controls = set(vocabulary.special_tokens.values())

    @generated
    @given(conversations(case.shape, texts=hostile_text), hostile_text)
    def check(messages: Any, said: str) -> None:
        tools = _tools(case, messages)
        harmless = [
            attrs.evolve(
                message,
                content=tuple(
                    attrs.evolve(part, text="x") if hasattr(part, "text") else part for part in message.content
                ),
            )
            for message in messages
        ]
        hostile = renderer.generation_prompt(messages[:-1], tools=tools).tokens.tolist()
        plain = renderer.generation_prompt(harmless[:-1], tools=tools).tokens.tolist()
        assert [t for t in hostile if t in controls] == [t for t in plain if t in controls]
        said = said.strip()
        if case.renderer == "role_colon" or not said:
            return
        (example,) = renderer.supervised_examples([user("x"), assistant(said)], tools=tools)
        trained = example.model_input.tokens[example.weights_T > 0].tolist()
        assert renderer.parse(trained, tools=tools).message.text == said

    check()


def test_customized_wants_every_message_marked() -> None:
    renderer = get_renderer("kimi_k2", oracles.vocabulary("KimiK2Thinking"))
    marked = [user("a", trainable=False), assistant("b", trainable=True)]
    (example,) = renderer.supervised_examples(marked, "customized")
    assert renderer.vocabulary.decode(example.model_input.tokens[example.weights_T > 0]) == "<think></think>b<|im_end|>"
    with pytest.raises(RenderError, match=r"message 1 \(assistant\).*trainable"):
        renderer.supervised_examples([user("a", trainable=False), assistant("b")], "customized")
    with pytest.raises(RenderError, match=r"message 0 \(user\).*trainable"):
        renderer.supervised_examples(marked, "all_assistant_messages")


def test_a_users_message_is_trained_without_its_header() -> None:
    renderer = get_renderer("qwen3", oracles.vocabulary("Qwen3"))
    (example,) = renderer.supervised_examples([user("\nhello"), assistant("b")], "all_user_and_system_messages")
    assert renderer.vocabulary.decode(example.model_input.tokens[example.weights_T > 0]) == "\n\nhello<|im_end|>"
    assert isinstance(example.model_input, ModelInput)
