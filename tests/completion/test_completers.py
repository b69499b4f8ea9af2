"""Completers: what is asked of a policy, what a script answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import numpy as np
import pytest

from engine.backends import BackendError, Completion, SampleRequest, SamplingParams
from engine.completion import PolicyCompleter, Reply, ScriptedCompleter
from engine.rendering import Delta, Message, ToolCallPart, ToolSpec, assistant, get_renderer, tool_result, user
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary

PARAMS = SamplingParams(max_tokens=64, temperature=0.5, stop=("END",))
ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
RENDERER = get_renderer("qwen3", byte_vocabulary(control_tokens("qwen3")))


class Writes:
    """A policy that always samples one message, to its end or cut off before it."""

    def __init__(self, message: Message, *, ended: bool = True) -> None:
        (example,) = RENDERER.supervised_examples([user("?"), message])
        tokens = example.model_input.tokens[example.weights_T > 0].tolist()
        self.tokens = tokens if ended else tokens[:-1]
        self.ended = ended
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        tokens = np.array(self.tokens, np.int32)
        return [Completion(tokens, np.zeros(len(tokens), np.float32), "stop" if self.ended else "length", 3)]


@pytest.mark.anyio
async def test_a_policy_is_asked_with_the_renderers_prompt_and_both_kinds_of_stop() -> None:
    policy = Writes(assistant("It is 5."))
    talk = [user("2 + 3?")]
    reply = await PolicyCompleter(policy, RENDERER).complete(talk, params=PARAMS, seed=7)
    (request,) = policy.requests
    assert request.prompt == RENDERER.generation_prompt(talk)
    assert (request.seed, request.num_samples, request.params.temperature) == (7, 1, 0.5)
    assert set(request.params.stop) == {*RENDERER.stop_sequences(), "END"}
    assert reply == Reply(assistant("It is 5."), "stop", request.prompt.length, len(policy.tokens), True)
    assert reply.text == "It is 5."


@pytest.mark.anyio
async def test_tools_are_declared_and_calls_are_read() -> None:
    policy = Writes(assistant(tool_calls=[ToolCallPart("add", {"a": 1})]))
    talk = [user("1?"), assistant(tool_calls=()), tool_result("x", name="add")]
    reply = await PolicyCompleter(policy, RENDERER).complete(talk, params=PARAMS, seed=0, tools=[ADD])
    assert policy.requests[0].prompt == RENDERER.generation_prompt(talk, tools=[ADD])
    assert [(call.name, dict(call.arguments)) for call in reply.message.tool_calls] == [("add", {"a": 1})]


@pytest.mark.anyio
async def test_an_answer_that_was_cut_off_says_so() -> None:
    reply = await PolicyCompleter(Writes(assistant("It is"), ended=False), RENDERER).complete(
        [user("?")], params=PARAMS, seed=0
    )
    assert (reply.stop_reason, reply.well_formed) == ("length", False)


@pytest.mark.anyio
async def test_a_script_answers_from_a_function_a_coroutine_or_a_list() -> None:
    async def slowly(messages: object) -> str:
        await anyio.lowlevel.checkpoint()
        return "slow"

    talk = [user("Hello?")]
    for script, expected in (
        (lambda messages: messages[-1].text.upper(), "HELLO?"),
        (slowly, "slow"),
        ([assistant("a message")], "a message"),
        ([Reply(assistant("cut"), "length")], "cut"),
    ):
        completer = ScriptedCompleter(script)
        assert (await completer.complete(talk, params=PARAMS, seed=0)).text == expected
        assert completer.asked == [tuple(talk)]
    with pytest.raises(BackendError, match="0 answers"):
        await ScriptedCompleter([]).complete(talk, params=PARAMS, seed=0)


@pytest.mark.anyio
@pytest.mark.parametrize("can_stream", [False, True])
async def test_a_streamed_answer_is_the_same_answer_in_pieces(can_stream: bool) -> None:
    class Streams(Writes):
        async def sample_streaming(
            self, request: SampleRequest, on_token: Callable[[int, int, float], None]
        ) -> Sequence[Completion]:
            for token in self.tokens:
                on_token(0, token, 0.0)
            return await self.sample(request)

    policy = (Streams if can_stream else Writes)(assistant("It is 5.", thinking="2 and 3"))
    said: list[Delta] = []
    completer = PolicyCompleter(policy, RENDERER)
    reply = await completer.stream([user("2 + 3?")], said.append, params=PARAMS, seed=7)
    assert reply == await completer.complete([user("2 + 3?")], params=PARAMS, seed=7)
    assert "".join(delta.text for delta in said if delta.kind == "text").strip() == "It is 5."
    assert "".join(delta.text for delta in said if delta.kind == "thinking").strip() == "2 and 3"
    assert len(said) > 5
