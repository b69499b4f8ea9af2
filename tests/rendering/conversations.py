"""Generated conversations, and what is known of every renderer for the tests."""

from __future__ import annotations

import os
from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from engine.rendering import Message, ToolCallPart, ToolSpec, assistant, system, tool_result, user

EXAMPLES = int(os.environ.get("CALLSHEET_EXAMPLES", "8"))
"""Conversations a test generates for each renderer; raise it for a thorough run."""

generated = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CALLSHEET_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TOOLS = (
    ToolSpec(
        "get_weather",
        "Weather of a city, in °C",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "days": {"type": "integer", "default": 1},
                "hourly": {"type": "boolean"},
                "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    ),
    ToolSpec("now", "The time"),
)

WORDS = (
    *(
        "a",
        "Hello",
        "world",
        " ",
        " ",
        "\n",
        "\n\n",
        "  \n",
        "\t",
        "1234",
        "'s",
        ".",
        "!",
        "<b>",
        "{",
        "}",
        '"',
        "\\",
        "|",
    ),
    *(
        "你好",
        "naïve",
        "안녕",
        "😀",
        "é",
        "ﷺ",
        "नमस्ते",
        "\u200d",
        "<",
        ">",
        "im_end",
        "/",
        "#",
        "```",
        "\r\n",
        "User",
        ":",
        "assistant",
    ),
)
CONTROL_STRINGS = (
    *(
        "<|im_end|>",
        "<|im_start|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<｜User｜>",
        "<｜end▁of▁sentence｜>",
        "<|eot_id|>",
    ),
    *(
        "<|user|>",
        "<|observation|>",
        "[gMASK]",
        "<|end|>",
        "<|return|>",
        "<|channel|>",
        "<|start|>",
        "<|endoftext|>",
        "<tool_response>",
    ),
    *(
        "<|tool_call_begin|>",
        "<|im_system|>",
        "<|vision_start|>",
        "<|image_pad|>",
        "<arg_key>",
        "[EOS]",
        "<|begin_of_text|>",
        "<s>",
    ),
)

any_text = st.lists(st.sampled_from(WORDS), max_size=8).map("".join)
hostile_text = st.lists(st.sampled_from(WORDS + CONTROL_STRINGS), max_size=8).map("".join)
trimmed_text = any_text.map(str.strip)
said_text = trimmed_text.filter(bool)


def ascii_only(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


@attrs.frozen
class Shape:
    """What a family's conversations may hold."""

    thinking: bool = False
    always_thinks: bool = False
    most_calls: int = 2
    text_beside_calls: bool = True
    always_text: bool = False
    thinking_after_tools: bool = True
    ascii_arguments: bool = False


@st.composite
def calls(draw: Any, shape: Shape, first: int) -> list[ToolCallPart]:
    found = []
    word = any_text.map(ascii_only) if shape.ascii_arguments else any_text
    for n in range(draw(st.integers(1, shape.most_calls))):
        if draw(st.booleans()):
            found.append(ToolCallPart("now", {}, f"functions.now:{first + n}"))
            continue
        arguments: dict[str, Any] = {"city": draw(word)}
        optional = {
            "days": st.integers(-5, 10**9),
            "hourly": st.booleans(),
            "unit": st.sampled_from(["C", "F"]),
            "tags": st.lists(word, max_size=2),
            "place": st.fixed_dictionaries(
                {"lat": st.floats(-90, 90, allow_nan=False), "nme" if shape.ascii_arguments else "näme": word}
            ),
        }
        for key, values in optional.items():
            if draw(st.integers(0, 3)) == 0:
                arguments[key] = draw(values)
        found.append(ToolCallPart("get_weather", arguments, f"functions.get_weather:{first + n}"))
    return found


@st.composite
def conversations(draw: Any, shape: Shape, *, texts: Any = any_text) -> list[Message]:
    """System or none, one to three questions, each answered after none to two rounds of tool calls."""
    messages = [system(draw(texts))] if draw(st.booleans()) else []
    count = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(texts)))
        for step in range(draw(st.integers(0, 2)) if shape.most_calls else 0):
            made = draw(calls(shape, count))
            count += len(made)
            text = draw(trimmed_text) if shape.text_beside_calls else ""
            messages.append(assistant(text, thinking=_thinking(draw, shape, after_tool=step > 0), tool_calls=made))
            messages.extend(tool_result(draw(texts), name=call.name, id=call.id) for call in made)
        after_tool = messages[-1].role == "tool"
        messages.append(
            assistant(
                draw(said_text if shape.always_text else trimmed_text),
                thinking=_thinking(draw, shape, after_tool=after_tool),
            )
        )
    return messages


def _thinking(draw: Any, shape: Shape, *, after_tool: bool) -> str | None:
    if not shape.thinking or (after_tool and not shape.thinking_after_tools):
        return None
    return draw(said_text) if shape.always_thinks else draw(st.none() | said_text)


def prompts_of(messages: list[Message]) -> list[list[Message]]:
    """The beginnings of a conversation that an answer follows."""
    return [messages[:n] for n in range(1, len(messages)) if messages[n].role == "assistant"]


@attrs.frozen
class Case:
    """A renderer, the vocabulary it is tested with, and its oracles."""

    renderer: str
    vocabulary: str
    shape: Shape = Shape()
    template: str | None = None
    variables: dict[str, Any] = attrs.field(factory=dict)
    second: tuple[str, str | None, dict[str, Any]] | None = None
    """Class, constructor (None: the class itself) and arguments in tml-renderers."""
    second_shape: Shape | None = None
    """Where tml-renderers departs from the official template: what it is compared on."""
    template_declares_tools: bool = True
    second_declares_tools: bool = True
    has_ids: bool = False

    def __str__(self) -> str:
        return f"{self.renderer}-{self.template}" if self.template else self.renderer


THINKS, QUIET = Shape(thinking=True), Shape()
ALWAYS = Shape(thinking=True, always_thinks=True)
NO_CALLS = Shape(thinking=True, always_thinks=True, most_calls=0)
DEEPSEEK = Shape(text_beside_calls=False, ascii_arguments=True)
LLAMA = {"bos_token": "<|begin_of_text|>"}

CASES = (
    Case("qwen2_5", "Qwen3", QUIET, "qwen2_5"),
    Case("qwen3", "Qwen3", THINKS, "qwen3", second=("Qwen3", None, {}), second_shape=NO_CALLS),
    Case(
        "qwen3_disable_thinking",
        "Qwen3",
        QUIET,
        "qwen3",
        {"enable_thinking": False},
        second=("Qwen3", "disable_thinking", {}),
    ),
    Case("qwen3_instruct", "Qwen3", QUIET, "qwen3_instruct_2507", second=("Qwen3", "instruct", {})),
    Case("qwen3_vl_instruct", "Qwen3", QUIET, "qwen3_vl", second=("Qwen3", "vision_instruct", {})),
    Case("qwen3_vl", "Qwen3", THINKS, second=("Qwen3", "vision", {}), second_shape=NO_CALLS),
    Case("qwen3_5", "Qwen35", THINKS, "qwen3_5_think", second=("Qwen35", None, {}), second_shape=NO_CALLS),
    Case(
        "qwen3_5_disable_thinking",
        "Qwen35",
        QUIET,
        "qwen3_5_nothink",
        second=("Qwen35", "disable_thinking", {}),
        second_shape=Shape(most_calls=0),
    ),
    Case("qwen3_6", "Qwen35", THINKS, "qwen3_6"),
    Case("qwen3_6_disable_thinking", "Qwen35", QUIET, "qwen3_6", {"enable_thinking": False}),
    Case("qwen3_6_preserve_thinking", "Qwen35", ALWAYS, "qwen3_6", {"preserve_thinking": True}),
    Case("qwen3_8", "Qwen35", ALWAYS, "qwen3_8", second=("Qwen38", None, {}), second_shape=NO_CALLS),
    Case("qwen3_8_medium", "Qwen35", ALWAYS, "qwen3_8", {"reasoning_effort": "medium"}),
    Case("qwen3_8_low", "Qwen35", ALWAYS, "qwen3_8", {"reasoning_effort": "low"}),
    Case("qwen3_8_disable_thinking", "Qwen35", QUIET, "qwen3_8", {"enable_thinking": False}),
    Case("llama3", "Llama3", Shape(most_calls=0), "llama3", LLAMA, template_declares_tools=False),
    Case("llama3_1", "Llama3", Shape(most_calls=1, text_beside_calls=False), "llama3_1", LLAMA),
    Case(
        "llama3_1",
        "Llama3",
        Shape(most_calls=1, text_beside_calls=False),
        "llama3_2",
        LLAMA | {"date_string": "26 Jul 2024"},
    ),
    Case(
        "deepseekv3",
        "DeepSeekV31",
        QUIET,
        second=("DeepSeekV31", None, {}),
        second_shape=DEEPSEEK,
        second_declares_tools=False,
    ),
    Case(
        "deepseekv3_thinking",
        "DeepSeekV31",
        Shape(thinking=True, thinking_after_tools=False),
        second=("DeepSeekV31", None, {"thinking": True}),
        second_shape=attrs.evolve(DEEPSEEK, thinking=True, thinking_after_tools=False),
        second_declares_tools=False,
    ),
    Case("kimi_k2", "KimiK2Thinking", THINKS, second=("KimiK2", None, {}), has_ids=True),
    Case(
        "kimi_k2_preserve_thinking",
        "KimiK2Thinking",
        ALWAYS,
        second=("KimiK2", "preserve_thinking_history", {}),
        has_ids=True,
    ),
    Case("kimi_k2_instruct", "KimiK2Instruct", QUIET, "Kimi-K2-Instruct", template_declares_tools=False, has_ids=True),
    Case("kimi_k25", "KimiK25", THINKS, second=("KimiK25", None, {}), second_declares_tools=False, has_ids=True),
    Case(
        "kimi_k25_disable_thinking",
        "KimiK25",
        QUIET,
        second=("KimiK25", "disable_thinking", {}),
        second_declares_tools=False,
        has_ids=True,
    ),
    Case(
        "kimi_k25_preserve_thinking",
        "KimiK25",
        THINKS,
        second=("KimiK25", "preserve_thinking_history", {}),
        second_declares_tools=False,
        has_ids=True,
    ),
    Case("kimi_k26", "KimiK26", THINKS, second=("KimiK25", None, {}), second_declares_tools=False, has_ids=True),
    Case("kimi_k26_disable_thinking", "KimiK26", QUIET, has_ids=True),
    Case("kimi_k26_preserve_thinking", "KimiK26", THINKS, has_ids=True),
    Case("nemotron3", "Nemotron3", THINKS, "nemotron_3_nano"),
    Case("nemotron3", "Nemotron3", THINKS, "nemotron_3_super"),
    Case("nemotron3_low", "Nemotron3", THINKS, "nemotron_3_super", {"low_effort": True}),
    Case("nemotron3_disable_thinking", "Nemotron3", QUIET, "nemotron_3_nano", {"enable_thinking": False}),
    Case("nemotron3_preserve_thinking", "Nemotron3", THINKS, "nemotron_3_nano", {"truncate_history_thinking": False}),
    Case("nemotron3_ultra", "Nemotron3", THINKS, "nemotron_3_ultra"),
    Case("nemotron3_ultra_medium", "Nemotron3", THINKS, "nemotron_3_ultra", {"medium_effort": True}),
    Case("nemotron3_ultra_disable_thinking", "Nemotron3", QUIET, "nemotron_3_ultra", {"enable_thinking": False}),
    Case(
        "nemotron3_ultra_preserve_thinking",
        "Nemotron3",
        THINKS,
        "nemotron_3_ultra",
        {"truncate_history_thinking": False},
    ),
    Case("gpt_oss", "Harmony", Shape(thinking=True, most_calls=1, text_beside_calls=False), "gptoss"),
    Case(
        "gpt_oss_low",
        "Harmony",
        Shape(thinking=True, most_calls=1, text_beside_calls=False),
        "gptoss",
        {"reasoning_effort": "low"},
    ),
    Case("gpt_oss_medium", "Harmony", Shape(thinking=True, most_calls=1, text_beside_calls=False), "gptoss"),
    Case(
        "gpt_oss_high",
        "Harmony",
        Shape(thinking=True, most_calls=1, text_beside_calls=False),
        "gptoss",
        {"reasoning_effort": "high"},
    ),
    Case("gpt_oss_no_sysprompt", "Harmony", THINKS),
    Case("glm4_5", "Glm", THINKS, "glm4moe"),
    Case("glm4_5_disable_thinking", "Glm", QUIET, "glm4moe", {"enable_thinking": False}),
    Case("glm4_7", "Glm", THINKS, "GLM-4.7-Flash"),
    Case("glm4_7_disable_thinking", "Glm", QUIET, "GLM-4.7-Flash", {"enable_thinking": False}),
    Case("glm4_7_preserve_thinking", "Glm", ALWAYS, "GLM-4.7-Flash", {"clear_thinking": False}),
    Case("glm", "Glm", THINKS, second=("Glm53", None, {})),
    Case("glm5", "Glm", THINKS, second=("Glm53", None, {})),
    Case("glm5_high", "Glm", THINKS, second=("Glm53", "high", {})),
    Case("glm5_low", "Glm", THINKS, second=("Glm53", "low", {})),
    Case("glm5_preserve_thinking", "Glm", ALWAYS, second=("Glm53", "preserve_thinking_history", {})),
    Case("chatml", "Qwen3", QUIET),
    Case("smollm2", "Qwen3", QUIET),
    Case("role_colon", "Qwen3", Shape(most_calls=0)),
)
