"""The message model, OpenAI-style dictionaries, tools, images, models by name."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from engine.backends.values import ImageChunk
from engine.rendering import (
    ImagePart,
    MalformedMessage,
    Message,
    RenderError,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolSpec,
    assistant,
    from_openai,
    get_renderer,
    model_info,
    register_model,
    register_renderer,
    renderer_names,
    system,
    to_openai,
    tool_result,
    user,
)
from engine.rendering.images import image_size, kimi_tokens, qwen_vl_tokens
from engine.rendering.models import ModelInfo
from engine.rendering.tools import call_from_json, call_from_xml
from engine.rendering.typescript import kimi_declarations
from tests.rendering import oracles
from tests.rendering.conversations import ALWAYS, TOOLS, conversations, generated
from tests.rendering.test_parsing import renderer_of


@generated
@given(conversations(ALWAYS))
def test_dictionaries_give_the_messages_back(messages: Any) -> None:
    assert from_openai([to_openai(message) for message in messages]) == messages


def test_parts_of_dictionaries() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}, "width": 2, "height": 3}
    (read,) = from_openai([{"role": "user", "content": [{"type": "text", "text": "a"}, picture]}])
    assert read == user([TextPart("a"), ImagePart("https://example.org/a.png", 2, 3)])
    assert from_openai([to_openai(read)]) == [read]
    (thought,) = from_openai(
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "b"}]}]
    )
    assert thought == Message("assistant", (ThinkingPart("t"), TextPart("b")))
    (called,) = from_openai(
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}]
    )
    assert called == assistant(tool_calls=[ToolCallPart("f", {"a": 1})])
    assert from_openai([{"role": "user", "content": "x", "trainable": False}]) == [user("x", trainable=False)]


@pytest.mark.parametrize(
    ("dictionary", "complaint"),
    [
        ({"role": "robot", "content": "x"}, "message 1, field 'role'"),
        ({"role": "user", "content": 3}, "message 1.content"),
        ({"content": "x"}, "message 1.role"),
        ({"role": "user", "content": "x", "colour": "red"}, "message 1: unknown field 'colour'"),
        ({"role": "user", "content": [{"type": "smell", "smell": "x"}]}, r"message 1, field 'content\[0\]'"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            r"message 1, field 'tool_calls\[0\].function.arguments'",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}, "JSON object"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "message 1.tool_calls"),
        ({"role": "tool"}, "message 1, field 'content'"),
        ({"role": "user"}, "message 1, field 'content'"),
        ({"role": "system", "content": None}, "message 1, field 'content'"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "message 1.*ToolCallPart"),
        ("hello", "message 1: a mapping"),
    ],
)
def test_a_malformed_message_is_named_with_its_field(dictionary: Any, complaint: str) -> None:
    with pytest.raises(MalformedMessage, match=complaint):
        from_openai([{"role": "user", "content": "x"}, dictionary])


def test_messages_refuse_what_their_role_cannot_hold() -> None:
    with pytest.raises(ValueError, match="cannot hold a ToolCallPart"):
        user([ToolCallPart("f")])
    with pytest.raises(ValueError, match="unknown role"):
        Message("robot", "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not of int"):
        user([3])  # type: ignore[list-item]
    assert system("").content == ()


def test_calls_that_cannot_be_read_say_why() -> None:
    assert call_from_json('{"name": "f", "arguments": {"a": 1}}') == ToolCallPart("f", {"a": 1})
    assert call_from_json('{"name": "f", "arguments": "{\\"a\\": 1}"}') == ToolCallPart("f", {"a": 1})
    for text in (
        "{",
        "[]",
        '{"name": 3}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": ""}',
    ):
        assert call_from_json(text).error  # type: ignore[union-attr]
    typed = call_from_xml(
        "\n<function=get_weather>\n<parameter=city>\n5\n</parameter>\n<parameter=hourly>\nTrue\n</parameter>\n</function>\n",
        TOOLS,
    )
    assert typed == ToolCallPart("get_weather", {"city": "5", "hourly": True})
    untyped = call_from_xml(
        "<function=f><parameter=a>\n[1, 2]\n</parameter><parameter=b>\nTrue\n</parameter></function>", ()
    )
    assert untyped == ToolCallPart("f", {"a": [1, 2], "b": "True"})
    for text in ("", "<function=>", "<function=f>\nhello\n</function>"):
        assert call_from_xml(text, ()).error  # type: ignore[union-attr]


def test_declarations_keep_what_they_were_given() -> None:
    given = {
        "type": "function",
        "function": {"parameters": {"type": "object", "properties": {}}, "name": "f", "strict": True},
    }
    assert ToolSpec.from_openai(given).to_openai() == given
    assert list(ToolSpec.from_openai(given).to_openai()["function"]) == ["parameters", "name", "strict"]
    with pytest.raises(ValueError, match=r"function\.name"):
        ToolSpec.from_openai({"function": {}})


def test_typescript_of_kimi() -> None:
    schema = {
        "type": "object",
        "properties": {
            "b": {"type": "string", "description": "two\nlines", "default": "é", "maxLength": 3},
            "a": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "next": {"$ref": "#/$defs/Node"},
        },
        "required": ["a"],
        "$defs": {
            "Node": {"type": "object", "description": "a node", "properties": {"next": {"$ref": "#/$defs/Node"}}}
        },
    }
    assert kimi_declarations([ToolSpec("f", "Does it", schema)]) == (
        "# Tools\n\n## functions\nnamespace functions {\n"
        "// a node\ninterface Node {\n  next?: Node\n}\n// Does it\n"
        "type f = (_: {\n  // minItems: 1\n  a: Array<number>,\n  // two\n  // lines\n  // maxLength: 3\n"
        '  // Default: "é"\n  b?: string,\n  next?: Node\n}) => any;\n}\n'
    )
    with pytest.raises(RenderError, match="refers to"):
        kimi_declarations([ToolSpec("f", "", {"properties": {"a": {"$ref": "#/$defs/None"}}})])


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\x00\x00\x00"


def test_images_are_references(tmp_path: Path) -> None:
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08" + struct.pack(">HH", 30, 40) + b"\x03" + bytes(20)
    assert image_size(ImagePart(jpeg)) == (40, 30)
    assert image_size(ImagePart(b"GIF89a" + struct.pack("<HH", 7, 9))) == (7, 9)
    assert image_size(ImagePart(b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x09\0\0\x13\0\0")) == (10, 20)
    (tmp_path / "a.png").write_bytes(png(640, 480))
    assert image_size(ImagePart(str(tmp_path / "a.png"))) == (640, 480)
    for bad, complaint in (
        (ImagePart(b"hello"), "no size"),
        (ImagePart("https://x/y.png"), "not fetched"),
        (ImagePart("/no/such.png"), "cannot be read"),
    ):
        with pytest.raises(RenderError, match=complaint):
            image_size(bad)


def test_headers_agree_with_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        image.new("RGB", (123, 45)).save(buffer, kind)
        assert image_size(ImagePart(buffer.getvalue())) == (123, 45), kind


def test_positions_of_an_image() -> None:
    # 640 x 480 is 20 x 15 blocks of 32; small pictures grow to 256 x 256 = 64 blocks; large ones shrink to 4096 x 4096.
    assert qwen_vl_tokens(640, 480) == 300
    assert qwen_vl_tokens(10, 10) == 64
    assert qwen_vl_tokens(20000, 20000) == 16384
    assert qwen_vl_tokens(640, 480, factor=28, least=56 * 56, most=14 * 14 * 4 * 1280) == 391
    with pytest.raises(RenderError, match="too long"):
        qwen_vl_tokens(1, 1000)
    assert kimi_tokens(280, 140) == 50
    renderer = renderer_of("qwen3_vl_instruct")
    prompt = renderer.generation_prompt([user([TextPart("see"), ImagePart(png(640, 480)), TextPart("that")])])
    before, picture, after = prompt.chunks
    assert renderer.vocabulary.decode(before.tokens) == "<|im_start|>user\nsee<|vision_start|>"
    assert picture == ImageChunk(png(640, 480), 300)
    assert renderer.vocabulary.decode(after.tokens).startswith("<|vision_end|>that<|im_end|>")
    (example,) = renderer.supervised_examples([user([ImagePart(png(64, 64))]), assistant("x")])
    assert len(example.weights_T) == example.model_input.length
    with pytest.raises(RenderError, match="no place for images"):
        renderer_of("qwen3").generation_prompt([user([ImagePart(png(64, 64))])])


@pytest.mark.parametrize(
    ("name", "family", "size", "kind", "renderer"),
    [
        ("Qwen/Qwen3-8B", "Qwen3", "8B", "chat", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3", "30B-A3B", "chat", "qwen3_instruct"),
        ("Qwen/Qwen3-8B-Base", "Qwen3", "8B", "base", "role_colon"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen3-VL", "30B-A3B", "chat", "qwen3_vl_instruct"),
        ("Qwen/Qwen3.5-4B", "Qwen3.5", "4B", "chat", "qwen3_5"),
        ("meta-llama/Llama-3.1-8B", "Llama3", "8B", "base", "role_colon"),
        ("meta-llama/Llama-3.3-70B-Instruct", "Llama3", "70B", "chat", "llama3_1"),
        ("deepseek-ai/DeepSeek-V3.1", "DeepSeek-V3", None, "chat", "deepseekv3"),
        ("deepseek-ai/DeepSeek-V3.1-Base", "DeepSeek-V3", None, "base", "role_colon"),
        ("moonshotai/Kimi-K2-Thinking", "Kimi-K2", None, "chat", "kimi_k2"),
        ("moonshotai/Kimi-K2.5", "Kimi-K2.5", None, "chat", "kimi_k25"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Nemotron3", "30B-A3B", "chat", "nemotron3"),
        ("openai/gpt-oss-20b", "gpt-oss", "20b", "chat", "gpt_oss"),
        ("zai-org/GLM-4.6", "GLM-4.5", None, "chat", "glm4_5"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2", "135M", "chat", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M", "SmolLM2", "135M", "base", "role_colon"),
    ],
)
def test_models_by_name(name: str, family: str, size: str | None, kind: str, renderer: str) -> None:
    info = model_info(name)
    assert (info.family, info.size, info.kind, info.renderer) == (family, size, kind, renderer)
    assert {info.renderer, *info.others} <= set(renderer_names())


def test_renderers_and_models_of_ones_own() -> None:
    with pytest.raises(KeyError, match="register_model"):
        model_info("me/mine")
    register_model("me/mine", ModelInfo("me", "mine", None, "chat", False, "chatml"))
    assert model_info("me/mine").renderer == "chatml"
    with pytest.raises(RenderError, match="no renderer is called 'mine'"):
        get_renderer("mine", oracles.vocabulary("Qwen3"))
    register_renderer("mine", lambda vocabulary: get_renderer("chatml", vocabulary))
    assert get_renderer("mine", oracles.vocabulary("Qwen3")).name == "chatml"


def test_a_tokenizer_of_another_family_is_refused() -> None:
    with pytest.raises(RenderError, match=r"'llama3' needs <\|begin_of_text\|>.*role_colon"):
        get_renderer("llama3", oracles.vocabulary("Qwen3"))


def test_the_tools_of_a_conversation_are_written_once() -> None:
    renderer = renderer_of("llama3_1")
    text = renderer.vocabulary.decode(
        renderer.generation_prompt([user("x"), assistant("y"), user("z")], tools=TOOLS).tokens
    )
    assert text.count('"get_weather"') == 1
    with pytest.raises(RenderError, match="first user message"):
        renderer.generation_prompt([assistant("x")], tools=TOOLS)
    assert tool_result("1", name="f").text == "1"
