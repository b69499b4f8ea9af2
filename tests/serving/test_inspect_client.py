"""inspect-ai as a client of the endpoint, through its own provider for such servers. Where both are installed: `pip install 'callsheet[inspect,serve]' 'openai>=3.4'`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from engine.rendering import Message, ToolCallPart, assistant
from engine.serving.endpoint import Endpoint
from engine.serving.served import ServedPolicy
from engine.serving.server import serving
from tests.actors.test_inspect_tasks import RENDERER, Answers, adds, last_question, sums

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # inspect-ai leaves memory streams and its client's connections open behind it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KEY = "s3cret"


@pytest.fixture
def anyio_backend() -> str:
    """The provider's client speaks asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def provider() -> None:
    if importlib.util.find_spec("inspect_ai") is None:
        pytest.skip("inspect-ai is not installed")
    version = importlib.metadata.version("openai") if importlib.util.find_spec("openai") else "0"
    if tuple(map(int, version.split(".")[:2])) < (3, 4):
        pytest.skip(f"the provider wants openai 3.4, and there is {version}")


async def played(policy: Answers, task: Any, address: str, logs: Path, monkeypatch: Any, **settings: Any) -> Any:
    from inspect_ai import eval_async
    from inspect_ai.model import get_model
    from inspect_ai.util._display import init_display_type

    monkeypatch.setenv("CALLSHEET_BASE_URL", address)
    monkeypatch.setenv("CALLSHEET_API_KEY", KEY)
    init_display_type("none")
    model = get_model("openai-api/callsheet/policy", memoize=False)
    (log,) = await eval_async(task, model=model, log_dir=str(logs), ctl_server=False, max_retries=0, **settings)
    return log


async def test_it_scores_a_served_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, heard = Answers(adds), []
    endpoint = Endpoint(
        {"policy": ServedPolicy(policy, RENDERER)},
        api_key=KEY,
        observer=lambda _, request, completions: heard.append((request, completions)),
    )
    async with serving(endpoint) as address:
        log = await played(policy, sums(), address, tmp_path, monkeypatch, max_tokens=20, seed=3, logprobs=True)
        assert log.status == "success"
        assert log.results.scores[0].metrics["accuracy"].value == 0.75
        assert log.samples[0].output.usage.input_tokens == policy.requests[0].prompt.length
        assert log.samples[0].output.choices[0].logprobs.content[0].logprob == 0.0
        assert len(heard) == 4
        refused = await played(policy, sums(), address, tmp_path, monkeypatch, frequency_penalty=0.5)
        assert refused.status == "error"
        assert "frequency_penalty: is not served" in refused.error.message


async def test_its_tools_are_called_through_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import tool

    called: list[tuple[int, int]] = []

    @tool
    def adder() -> Any:
        async def execute(left: int, right: int) -> str:
            """Adds.

            Args:
                left: A number.
                right: Another.
            """
            called.append((left, right))
            return str(left + right)

        return execute

    def calls(prompt: str) -> Message:
        results = re.findall(r"<tool_response>\n(\d+)", prompt)
        if len(results) == 2:  # it asks twice, so that ids must tell two calls of one conversation apart
            return assistant(results[-1])
        left, right = map(int, last_question(prompt).split(" + "))
        return assistant(tool_calls=[ToolCallPart("adder", {"left": left, "right": right})])

    policy = Answers(calls)
    task = sums()
    task.solver = [use_tools(adder()), generate()]  # type: ignore[assignment]
    async with serving(Endpoint({"policy": ServedPolicy(policy, RENDERER)}, api_key=KEY)) as address:
        log = await played(policy, task, address, tmp_path, monkeypatch)
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert sorted(called) == sorted(2 * [(8, 8), (12, 30), (20, 22), (71, 1)])
    for sample in log.samples:
        ids = [call.id for message in sample.messages for call in getattr(message, "tool_calls", None) or ()]
        assert len(set(ids)) == 2
