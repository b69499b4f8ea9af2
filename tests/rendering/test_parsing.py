"""Tokens back to messages: streaming equals whole, nothing raises, and what others were seen to get wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rendering import (
    Delta,
    Message,
    PartEnd,
    RenderError,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UnparsedToolCallPart,
    assistant,
    get_renderer,
    system,
    tool_result,
    user,
)
from tests.rendering import oracles
from tests.rendering.conversations import CASES, TOOLS, Case, conversations, generated, prompts_of
from tests.rendering.test_properties import every_renderer


def renderer_of(name: str) -> Any:
    case = next(case for case in CASES if case.renderer == name)
    return get_renderer(name, oracles.vocabulary(case.vocabulary))


def trained(renderer: Any, *messages: Message) -> list[int]:
    example = renderer.supervised_examples(
        messages, "last_assistant_message", tools=TOOLS if messages[-1].tool_calls else ()
    )[-1]
    return [int(token) for token in example.model_input.tokens[example.weights_T > 0]]


def check_stream(renderer: Any, tokens: list[int], cuts: list[int], **options: Any) -> None:
    """Feeding in pieces gives the events of feeding one by one, joined, and the message of the whole."""
    whole = renderer.parse(tokens, **options)
    stream = renderer.stream_parser(**options)
    events: list[Any] = []
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        events.extend(stream.feed(tokens[start:end]))
    before = len(events)
    assert stream.finish() == whole
    done = [event.part for event in events if isinstance(event, PartEnd)]
    assert tuple(done) == whole.message.content[: len(done)]
    said = {
        kind: "".join(e.text for e in events if isinstance(e, Delta) and e.kind == kind)
        for kind in ("text", "thinking")
    }
    for kind, part_type in (("text", TextPart), ("thinking", ThinkingPart)):
        told = "".join(part.text for part in whole.message.content if isinstance(part, part_type))
        assert told.startswith(said[kind])
    assert before == len(events)


@every_renderer
def test_streaming_equals_whole_at_every_split_point(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)

    @generated
    @given(conversations(case.shape))
    def check(messages: Any) -> None:
        tools = TOOLS if case.shape.most_calls else ()
        prompt = prompts_of(messages)[-1]
        (example,) = renderer.supervised_examples(messages[: len(prompt) + 1], "last_assistant_message", tools=tools)
        tokens = [int(token) for token in example.model_input.tokens[example.weights_T > 0]]
        for cut in range(len(tokens) + 1):
            check_stream(renderer, tokens, [cut], tools=tools)
        check_stream(renderer, tokens, list(range(1, len(tokens))), tools=tools)

    check()


@every_renderer
def test_parsing_never_raises(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)
    controls = sorted(vocabulary.special_tokens.values())
    common = vocabulary.encode(
        '{"name": "f", "arguments": {"a": [1, "\\ud800", NaN]}} <function=f> </function> é😀 functions.f:0 [[[[ assistant to=f'
    )
    tokens = st.one_of(
        st.sampled_from(controls[:60]), st.sampled_from(common), st.integers(-2, vocabulary.vocab_size + 5)
    )

    @generated
    @given(st.lists(tokens, max_size=40), st.booleans())
    def check(sampled: Any, after_tool: bool) -> None:
        parsed = renderer.parse(sampled, tools=TOOLS, after_tool=after_tool)
        assert (parsed.termination == "malformed") <= bool(parsed.failures)
        check_stream(renderer, sampled, [len(sampled) // 2], tools=TOOLS, after_tool=after_tool)
        renderer.generation_prompt(
            [user("x"), Message("assistant", parsed.message.text), user("y")]
        ) if case.renderer != "role_colon" else None

    check()


@every_renderer
def test_a_whole_conversation_of_random_tokens_is_survived(case: Case) -> None:
    vocabulary = oracles.vocabulary(case.vocabulary)
    renderer = get_renderer(case.renderer, vocabulary)
    draw = random.Random(0)
    controls = list(vocabulary.special_tokens.values())
    for _ in range(20):
        sampled = [
            draw.choice(controls) if draw.random() < 0.2 else draw.randrange(vocabulary.vocab_size) for _ in range(60)
        ]
        assert renderer.parse(sampled).message.role == "assistant"


def test_deeply_nested_arguments_are_a_failure_of_content() -> None:
    renderer = renderer_of("qwen3")
    special = renderer.vocabulary.special_tokens
    body = renderer.vocabulary.encode('\n{"name": "f", "arguments": ' + "[" * 20000)
    parsed = renderer.parse([special["<tool_call>"], *body, special["</tool_call>"], special["<|im_end|>"]])
    assert parsed.termination == "stop_sequence"
    assert [failure.kind for failure in parsed.failures] == ["content"]
    assert isinstance(parsed.message.content[0], UnparsedToolCallPart)


def test_how_an_answer_ends() -> None:
    renderer = renderer_of("qwen3")
    special = renderer.vocabulary.special_tokens
    text = renderer.vocabulary.encode("hello")
    assert renderer.parse([*text, special["<|im_end|>"]]).ok
    cut = renderer.parse(text)
    assert (cut.termination, cut.message, cut.failures[0].kind) == ("malformed", assistant("hello"), "structure")
    unclosed = renderer.parse([special["<think>"], *text, special["<|im_end|>"]])
    assert (unclosed.termination, unclosed.message) == ("malformed", assistant(thinking="hello"))
    broken = renderer.parse([*text, special["<|im_start|>"], *text, special["<|im_end|>"]])
    assert broken.termination == "malformed"
    assert broken.message == assistant("hello<|im_start|>hello")
    after = renderer.parse([*text, special["<|im_end|>"], *text])
    assert after.termination == "malformed"


def test_another_end_of_text_is_told_from_the_stop() -> None:
    renderer = renderer_of("llama3")
    tokens = renderer.vocabulary.encode("hello")
    assert renderer.parse([*tokens, renderer.vocabulary.special_token("<|end_of_text|>")]).termination == "eos"


def test_a_character_spread_over_tokens_comes_out_whole() -> None:
    renderer = renderer_of("qwen3")
    tokens = renderer.vocabulary.encode("𒀀𒀁")
    assert len(tokens) > 2
    stream = renderer.stream_parser()
    pieces = ["".join(event.text for event in stream.feed([token])) for token in tokens]
    assert "".join(pieces) == "𒀀𒀁"
    assert "\ufffd" not in "".join(pieces)


def test_thinking_and_calls_stream_as_they_come() -> None:
    renderer = renderer_of("qwen3")
    message = assistant("so", thinking="hm", tool_calls=[ToolCallPart("now", {})])
    stream = renderer.stream_parser()
    seen: list[Any] = []
    for token in trained(renderer, user("x"), message):
        seen.extend(stream.feed([token]))
    kinds = [event.kind if isinstance(event, Delta) else type(event.part).__name__ for event in seen]
    order = list(dict.fromkeys(kinds))
    assert order == ["thinking", "ThinkingPart", "text", "TextPart", "tool_call", "ToolCallPart"]
    assert stream.finish().message == message


# What was seen wrong elsewhere.


@pytest.mark.parametrize("name", ["deepseekv3", "deepseekv3_thinking"])
def test_deepseek_answers_that_only_call_train_their_stop(name: str) -> None:
    renderer = renderer_of(name)
    asked = assistant(tool_calls=[ToolCallPart("now", {})])
    tokens = trained(renderer, user("x"), asked)
    assert tokens[-1] == renderer.vocabulary.special_token("<｜end▁of▁sentence｜>")
    parsed = renderer.parse(tokens)
    assert (parsed.termination, parsed.message) == ("stop_sequence", asked)


@every_renderer
def test_an_empty_answer_trains_its_stop(case: Case) -> None:
    renderer = renderer_of(case.renderer)
    tokens = trained(renderer, user("x"), assistant())
    assert tokens
    assert renderer.parse(tokens).termination == "stop_sequence"
    assert renderer.parse(tokens).message == assistant()


@pytest.mark.parametrize("name", ["kimi_k2", "nemotron3", "gpt_oss", "smollm2"])
def test_customized_works_where_a_family_writes_a_system_message_of_its_own(name: str) -> None:
    renderer = renderer_of(name)
    marked = [Message("user", "a", trainable=False), Message("assistant", "b", trainable=True)]
    (example,) = renderer.supervised_examples(marked, "customized")
    assert renderer.parse(example.model_input.tokens[example.weights_T > 0]).message.text == "b"


def test_harmony_parses_its_own_parallel_calls_and_empty_finals() -> None:
    renderer = renderer_of("gpt_oss")
    two = assistant(
        "let me", thinking="hm", tool_calls=[ToolCallPart("now", {}), ToolCallPart("get_weather", {"city": "Zürich"})]
    )
    assert renderer.parse(trained(renderer, user("x"), two)).message == two
    assert renderer.parse(trained(renderer, user("x"), two)).ok
    one = assistant(tool_calls=[ToolCallPart("get_weather", {"city": "naïve"})])
    assert renderer.parse(trained(renderer, user("x"), one)).message == one
    empty = assistant(thinking="only thought")
    assert renderer.parse(trained(renderer, user("x"), empty)).message == empty


def test_harmony_reads_what_the_model_itself_writes() -> None:
    renderer = renderer_of("gpt_oss")
    special, encode = renderer.vocabulary.special_tokens, renderer.vocabulary.encode
    native = [
        special["<|channel|>"],
        *encode("commentary to=functions.now "),
        special["<|constrain|>"],
        *encode("json"),
        special["<|message|>"],
        *encode("{}"),
        special["<|call|>"],
    ]
    assert renderer.parse(native).message == assistant(tool_calls=[ToolCallPart("now", {})])


def test_role_colon_keeps_newlines() -> None:
    renderer = renderer_of("role_colon")
    message = assistant("a\n\n\nb\n")
    assert renderer.parse(trained(renderer, user("x"), message)).message == message


def test_an_empty_thinking_block_is_no_text() -> None:
    renderer = renderer_of("qwen3")
    tokens = trained(renderer, user("x"), assistant("hello"))
    assert renderer.vocabulary.decode(tokens) == "<think>\n\n</think>\n\nhello<|im_end|>"
    assert renderer.parse(tokens).message == assistant("hello")


def test_calls_are_written_or_refused_never_dropped() -> None:
    call = assistant(tool_calls=[ToolCallPart("now", {})])
    llama = renderer_of("llama3_1")
    assert renderer_of("llama3_1").parse(trained(llama, user("x"), call)).message == call
    with pytest.raises(RenderError, match=r"message 1.*one tool call"):
        llama.generation_prompt(
            [user("x"), assistant(tool_calls=[ToolCallPart("a", {}), ToolCallPart("b", {})]), tool_result("1")]
        )
    with pytest.raises(RenderError, match=r"message 1.*tool calls"):
        renderer_of("role_colon").generation_prompt([user("x"), call, tool_result("1")])
    for name in ("qwen3_instruct", "llama3", "chatml", "role_colon"):
        with pytest.raises(RenderError, match="no place for thinking"):
            renderer_of(name).supervised_examples([user("x"), assistant("a", thinking="b")])


def test_parts_of_text_are_joined() -> None:
    for case in CASES:
        renderer = renderer_of(case.renderer)
        apart = [user([TextPart("a "), TextPart("b")]), assistant([TextPart("c"), TextPart("d")]), user("e")]
        joined = [user("a b"), assistant("cd"), user("e")]
        assert renderer.generation_prompt(apart) == renderer.generation_prompt(joined)


def test_letters_of_arguments_are_not_escaped() -> None:
    for case in CASES:
        if case.shape.most_calls == 0:
            continue
        renderer = renderer_of(case.renderer)
        call = assistant(tool_calls=[ToolCallPart("get_weather", {"city": "naïve"}, "functions.get_weather:0")])
        assert "naïve" in renderer.vocabulary.decode(trained(renderer, user("x"), call)), case.renderer


def test_a_prefill_is_part_of_the_message() -> None:
    renderer = renderer_of("qwen3_instruct")
    prompt = renderer.generation_prompt([user("x")], prefill="Sure, ")
    assert renderer.vocabulary.decode(prompt.tokens).endswith("assistant\nSure, ")
    sampled = [*renderer.vocabulary.encode("yes"), renderer.vocabulary.special_token("<|im_end|>")]
    assert renderer.parse(sampled, prefill="Sure, ").message == assistant("Sure, yes")


def test_other_roles_can_be_generated() -> None:
    prompt = renderer_of("qwen3").generation_prompt([system("s"), user("x"), assistant("y")], role="user")
    assert renderer_of("qwen3").vocabulary.decode(prompt.tokens).endswith("y<|im_end|>\n<|im_start|>user\n")


def test_deepseek_declares_tools_as_its_model_card() -> None:
    renderer = renderer_of("deepseekv3")
    text = renderer.vocabulary.decode(renderer.generation_prompt([system("s"), user("x")], tools=TOOLS[1:]).tokens)
    assert text == (
        "<｜begin▁of▁sentence｜>s\n\n## Tools\nYou have access to the following tools:\n\n### now\nDescription: The time\n\n"
        'Parameters: {"type": "object", "properties": {}}\n\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n'
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
        "{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n<｜User｜>x<｜Assistant｜></think>"
    )


def test_kimi_declares_tools_as_typescript_from_k25_on() -> None:
    text = {name: renderer_of(name) for name in ("kimi_k2", "kimi_k25")}
    said = {
        name: r.vocabulary.decode(r.generation_prompt([user("x")], tools=TOOLS[1:]).tokens) for name, r in text.items()
    }
    assert said["kimi_k25"].startswith(
        "<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\nnamespace functions {\n// The time\ntype now = (_: {}) => any;\n}\n<|im_end|>"
    )
    assert said["kimi_k2"].startswith(
        '<|im_system|>tool_declare<|im_middle|>[{"function":{"description":"The time","name":"now","parameters":{'
    )
