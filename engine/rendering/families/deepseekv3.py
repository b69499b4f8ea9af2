"""DeepSeek V3.1: system text without a role token, `<｜User｜>` and `<｜Assistant｜>`, tool calls in a section of control tokens.

An answer behind a tool's output has no header: the model goes on where the output ends. Thinking is dropped from history, where `</think>`
alone remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs

from engine.rendering.messages import Part, RenderError, Role, TextPart, ToolCallPart, UnparsedToolCallPart
from engine.rendering.parsing import AnswerGrammar, CallItems, Control
from engine.rendering.renderer import Conversation, Family, visible
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_with_arguments, dump_json

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
CALL_BEGIN, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUT = ("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")
THINK = ("<think>", "</think>")
