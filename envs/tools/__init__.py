"""Environments with tools.

    @tool
    def multiply(left: int, right: int) -> int:
        \"\"\"Multiplies two numbers.\"\"\"
        return left * right

    env = ToolEnv(renderer, [user("What is 127 * 46?")], Toolbox([multiply]), grade=lambda answer: float("5842" in answer))

`docs/tools.md` shows the rest.
"""

from __future__ import annotations

from envs.tools.agent import Grade, ToolEnv, ToolGroup, ToolLimits, ToolRewards, ToolSession
from envs.tools.results import ToolError, ToolResult, ToolUnavailable
from envs.tools.tool import Tool, ToolOptions, WrongArguments, as_tool, tool, tools_of
from envs.tools.toolbox import CallBudget, CallOutcome, Toolbox, calls_in

__all__ = [
    "CallBudget",
    "CallOutcome",
    "Grade",
    "Tool",
    "ToolEnv",
    "ToolError",
    "ToolGroup",
    "ToolLimits",
    "ToolOptions",
    "ToolResult",
    "ToolRewards",
    "ToolSession",
    "ToolUnavailable",
    "Toolbox",
    "WrongArguments",
    "as_tool",
    "calls_in",
    "tool",
    "tools_of",
]
