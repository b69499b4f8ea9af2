"""Property 1: a generation prompt is, token for token, what the family's official chat template writes."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rendering import get_renderer
from tests.rendering import oracles
from tests.rendering.conversations import CASES, TOOLS, Case, conversations, generated, prompts_of

WITH_TEMPLATE = [case for case in CASES if case.template is not None]
WITH_SECOND = [case for case in CASES if case.second is not None]


def _second(case: Case) -> Any:
    renderers = pytest.importorskip("tml_renderers.renderers")
    assert case.second is not None
    name, constructor, arguments = case.second
    made = getattr(renderers, name)
    return made(**arguments) if constructor is None else getattr(made, constructor)(**arguments)


@pytest.mark.parametrize("case", WITH_TEMPLATE, ids=str)
def test_prompts_are_the_templates(case: Case) -> None:
    assert case.template is not None
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)
    oracles.template_source(case.template)

    @generated
    @given(conversations(case.shape), st.booleans())
    def check(messages: Any, declares: bool) -> None:
        tools = TOOLS if declares and case.template_declares_tools else ()
        for prompt in prompts_of(messages):
            text = oracles.official_text(
                case.template or "", prompt, tools=tools, add_generation_prompt=True, **case.variables
            )
            mine = renderer.generation_prompt(prompt, tools=tools).tokens.tolist()
            assert vocabulary.decode(mine) == text
            assert mine == oracles.encode_official(text, vocabulary)

    check()


@pytest.mark.parametrize("case", WITH_SECOND, ids=str)
def test_prompts_are_those_of_the_second_implementation(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer, second = get_renderer(case.renderer, vocabulary), _second(case)

    @generated
    @given(conversations(case.second_shape or case.shape), st.booleans())
    def check(messages: Any, declares: bool) -> None:
        empty_system = messages[0].role == "system" and not messages[0].text.strip()  # a template writes nothing then
        tools = TOOLS if declares and case.second_declares_tools and not empty_system else ()
        for prompt in prompts_of(messages):
            mine = vocabulary.decode(renderer.generation_prompt(prompt, tools=tools).tokens)
            assert mine == vocabulary.decode(oracles.second_opinion(second, prompt, tools=tools))

    check()


TRAINED_ALIKE = (
    "qwen3",
    "qwen3_instruct",
    "qwen3_vl_instruct",
    "qwen3_5",
    "qwen3_8",
    "deepseekv3",
    "deepseekv3_thinking",
    "kimi_k2",
    "kimi_k25",
)


@pytest.mark.parametrize(
    "case", [case for case in WITH_SECOND if case.renderer in TRAINED_ALIKE], ids=lambda case: case.renderer
)
def test_examples_are_those_of_the_second_implementation(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer, second = get_renderer(case.renderer, vocabulary), _second(case)

    @generated
    @given(conversations(attrs.evolve(case.second_shape or case.shape, always_thinks=True, always_text=True)))
    def check(messages: Any) -> None:
        mine = [(e.model_input.tokens.tolist(), e.weights_T.tolist()) for e in renderer.supervised_examples(messages)]
        ours, theirs = _trained(vocabulary, mine), _trained(vocabulary, oracles.second_examples(second, messages))
        assert ours == theirs if case.renderer != "kimi_k2" else ours >= theirs  # there it trains the last answer alone

    check()


def _trained(vocabulary: Any, examples: Any) -> set[tuple[str, str]]:
    """Every trained stretch with all that stands before it: the same however answers are gathered into examples."""
    found = set()
    for tokens, weights in examples:
        edges = [
            n
            for n in range(len(weights) + 1)
            if (n < len(weights) and weights[n] > 0) != (n > 0 and weights[n - 1] > 0)
        ]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            found.add((vocabulary.decode(tokens[:start]), vocabulary.decode(tokens[start:end])))
    return found
