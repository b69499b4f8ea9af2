"""A harness of `verifiers` that runs in its process: the conversation goes to the model, and calls go to the task's tool servers, until an answer has none.

What its `null` harness does in a program of its own, which costs a second of CPU for each rollout. It runs no code of the model's. `--harness null` and others of verifiers' are taken by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils import mcp

__all__ = ["ChatHarness"]


class ChatHarnessConfig(vf.HarnessConfig):  # type: ignore[misc]  # verifiers is no dependency, so its classes are unknown here
    """It has no settings beside those of every harness."""


class ChatHarness(vf.Harness[ChatHarnessConfig]):  # type: ignore[misc]
    """A chat loop with tools."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,  # noqa: ARG002  (the port's)
        runtime: Any,  # noqa: ARG002
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: Any,
    ) -> Any:
        """See `vf.Harness.launch`. A question that is refused ends the program with its reason, as it ends one that runs by itself."""
        messages = self._opening(data)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                httpx.AsyncClient(headers={"Authorization": f"Bearer {secret}"}, timeout=None, verify=False)  # noqa: S113, S501
            )
            servers = {
                "mcpServers": {
                    name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()
                }
            }
            tools, dispatch, connected = await mcp.connect_mcp(servers, stack) if mcp_urls else ([], {}, {})
            while True:
                body = {"model": ctx.model, "messages": messages, **({"tools": tools} if tools else {})}
                response = await client.post(f"{endpoint}/chat/completions", json=body)
                if response.status_code != httpx.codes.OK:
                    return vf.ProgramResult(exit_code=1, stdout="", stderr=response.text)
                message = response.json()["choices"][0]["message"]
                messages.append(message)
                if not message.get("tool_calls"):
                    return vf.ProgramResult(exit_code=0, stdout="", stderr="")
                for call in message["tool_calls"]:
                    content = await _result(call["function"], dispatch, connected)
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})

    def _opening(self, data: Any) -> list[dict[str, Any]]:
        system, prompt = self.resolve_prompt(data)
        before = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            return [*before, {"role": "user", "content": prompt}]
        return [*before, *(message_to_wire(message) for message in prompt or ())]


async def _result(function: Mapping[str, Any], dispatch: Mapping[str, Any], servers: Mapping[str, Any]) -> Any:
    """What a call came to; what is wrong with it is told to the model."""
    name = function["name"]
    if name not in dispatch:
        known: Sequence[str] = sorted(dispatch)
        return f"error: there is no tool {name!r}; there are {', '.join(known) or 'none'}"
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError as error:
        return f"error: the arguments are not JSON: {error}"
    if not isinstance(arguments, dict):
        return f"error: the arguments must be a JSON object, not {type(arguments).__name__}"
    return await mcp.call_mcp(servers, dispatch, name, arguments)
