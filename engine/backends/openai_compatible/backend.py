"""The sampling port over the completions API: prompts as token ids, answers as token ids with logprobs. It does not train.

Not every server gives back the tokens that it sampled. What is understood, in this order:

    choices[].token_ids                          vLLM and our own endpoint, when `return_token_ids` is asked for
    choices[].logprobs.content[].id              llama.cpp
    choices[].logprobs.tokens = "token_id:123"   vLLM and SGLang, when `return_tokens_as_token_ids` is asked for

A server that gives text alone is refused: its text, tokenised again, is not what was sampled. `engine.completion.chat_api` is for those.

Dimension suffixes: `T` positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import anyio
import numpy as np

from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.backends.openai_compatible.connection import Connection
from engine.backends.openai_compatible.fields import stop_reason, stops
from engine.backends.openai_compatible.servers import ANY, Server, stop_at
from engine.backends.ports import Capabilities, Pending, Snapshot
from engine.backends.values import (
    AdamParams,
    Completion,
    Datum,
    ForwardBackwardResult,
    ImageChunk,
    Logprobs,
    Loss,
    ModelInput,
    SampleRequest,
    SamplingParams,
    Tokens,
)
from engine.runtime.seeds import derive_seed
from engine.runtime.ungrouped import ungrouped

PATH = "completions"
_PREFIX = "token_id:"


class ServedSnapshot:
    """The server's weights, which it never changes as far as we know: version 0."""

    version = 0


class _Given:
    """A `Pending` of what is there already."""

    def __init__(self, value: Any) -> None:
        self._value = value

    async def result(self) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._value


class OpenAICompatibleBackend:
    """Sampling and scoring on a server. What belongs to training is refused with RequestRejected."""

    def __init__(
        self, connection: Connection, model: str, *, max_context: int | None = None, server: Server = ANY
    ) -> None:
        self.connection = connection
        self.model = model
        self.server = server
        self.capabilities = Capabilities(
            f"openai_compatible at {connection.settings.base_url}",
            losses=frozenset(),
            max_context=max_context,
            request_deadline=connection.settings.deadline * connection.settings.attempts,
        )
        self._live: set[ServedSnapshot] = set()

    @property
    def version(self) -> int:
        """Always 0: nothing is trained here."""
        return 0

    # ---- sampling

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions, one request to the server each: sample i is asked for with a seed of its own, so it does not depend on how many
        there are. Servers share the prompt's work among them.

        Raises TransientError, RequestRejected; BackendError where the server gives no token ids.
        """
        self._check(snapshot)
        tokens_T = self._tokens("prompt", request.prompt)
        params = request.params
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": tokens_T.tolist(),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "include_stop_str_in_output": True,
        }
        body |= {**self.server.fields, **(stops(params) if self.server.stops else {})}
        if params.top_k != -1:
            body["top_k"] = params.top_k
        found: list[Completion | None] = [None] * request.num_samples

        async def one(index: int) -> None:
            seeded = {**body, "seed": derive_seed(request.seed, index) % 2**31}
            found[index] = self._completion(await self.connection.post(PATH, seeded), params)

        if request.num_samples == 1:
            await one(0)
        else:
            with ungrouped():
                async with anyio.create_task_group() as tasks:
                    for index in range(request.num_samples):
                        tasks.start_soon(one, index)
        return [completion for completion in found if completion is not None]

    def _completion(self, answer: Mapping[str, Any], params: SamplingParams) -> Completion:
        choice = self._choice(answer)
        tokens_T, logprobs_T = tokens_of(choice), logprobs_of(choice)
        if tokens_T is None:
            raise BackendError(
                f"{self.connection.settings.base_url}: the server gives no token ids, so what it sampled is not known exactly; use it as a completer "
                "(judge, teacher that writes), or serve the model with one that does (vLLM, llama.cpp)"
            )
        if logprobs_T is None or len(logprobs_T) != len(tokens_T):
            count = "none" if logprobs_T is None else str(len(logprobs_T))
            raise BackendError(
                f"{self.connection.settings.base_url}: {len(tokens_T)} tokens came with {count} logprobs; sampling needs one each"
            )
        if not len(tokens_T):
            raise TransientError(f"{self.connection.settings.base_url}: an answer without a single token")
        end = None if self.server.stops else stop_at(params, tokens_T, choice)
        if end is not None:
            return Completion(tokens_T[:end], logprobs_T[:end], "stop", version=0)
        return Completion(tokens_T, logprobs_T, stop_reason(choice.get("finish_reason")), version=0)

    async def compute_logprobs(self, snapshot: Snapshot, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN. The server echoes the prompt with its logprobs."""
        self._check(snapshot)
        tokens_T = self._tokens("sequence", sequence)
        body = {
            "model": self.model,
            "prompt": tokens_T.tolist(),
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
        }
        choice = self._choice(await self.connection.post(PATH, body))
        logprobs_T = logprobs_of(choice)
        if logprobs_T is None or len(logprobs_T) < len(tokens_T):
            raise BackendError(
                f"{self.connection.settings.base_url}: the server gives no logprobs of a prompt (`echo` with `logprobs`), which scoring needs"
            )
        echoed_T = _ids_in(choice.get("logprobs"))
        if echoed_T is not None and not np.array_equal(echoed_T[: len(tokens_T)], tokens_T):
            raise BackendError(f"{self.connection.settings.base_url}: the server scored other tokens than it was sent")
        scored_T = logprobs_T[: len(tokens_T)].copy()
        scored_T[0] = np.nan
        if not np.isfinite(scored_T[1:]).all():
            at = int(np.flatnonzero(~np.isfinite(scored_T[1:]))[0]) + 1
            raise TransientError(
                f"{self.connection.settings.base_url}: the logprob at position {at} of a prompt is {scored_T[at]}"
            )
        return scored_T

    def _choice(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise TransientError(
                f"{self.connection.settings.base_url}: the answer holds no choice: {str(answer)[:200]}"
            )
        return choices[0]

    def _tokens(self, field: str, value: ModelInput) -> Tokens:
        if any(isinstance(chunk, ImageChunk) for chunk in value.chunks):
            raise RequestRejected(f"{field}: it holds an image, which the completions API cannot take as tokens")
        tokens_T = value.tokens
        if not len(tokens_T):
            raise RequestRejected(f"{field}: it is empty; the server needs at least one token")
        longest = self.capabilities.max_context
        if longest is not None and len(tokens_T) > longest:
            raise RequestRejected(f"{field}: {len(tokens_T)} tokens; the model's context is {longest}")
        return tokens_T

    # ---- snapshots: there is one policy, and it stays

    def snapshot(self) -> Pending[Snapshot]:
        """The server's weights."""
        snapshot = ServedSnapshot()
        self._live.add(snapshot)
        return _Given(snapshot)

    def release(self, snapshot: Snapshot) -> None:
        """Gives up a snapshot. Releasing twice raises BackendError."""
        self._check(snapshot)
        self._live.remove(snapshot)  # type: ignore[arg-type]

    def save_snapshot(self, snapshot: Snapshot, directory: Path) -> Pending[None]:
        """Nothing to write: the server keeps its weights. A note of which model it is stays in the directory."""
        self._check(snapshot)
        (directory / "server.txt").write_text(f"{self.model}\n", encoding="utf-8")
        return _Given(None)

    def load_snapshot(self, directory: Path) -> Pending[Snapshot]:  # noqa: ARG002  (the port's)
        """The server's weights again."""
        return self.snapshot()

    def _check(self, snapshot: Snapshot) -> None:
        if snapshot not in self._live:
            raise BackendError("this snapshot is not live: it was released, or is of another backend")

    # ---- training

    def _refused(self) -> NoReturn:
        raise RequestRejected(
            f"the backend openai_compatible samples and scores; it cannot train '{self.model}': use local or tinker for that"
        )

    def forward(self, data: Sequence[Datum], loss: Loss) -> Pending[ForwardBackwardResult]:  # noqa: ARG002
        """Refused."""
        self._refused()

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Pending[ForwardBackwardResult]:  # noqa: ARG002
        """Refused."""
        self._refused()

    def optim_step(self, params: AdamParams) -> Pending[dict[str, float]]:  # noqa: ARG002
        """Refused."""
        self._refused()

    def restart(self) -> Pending[None]:
        """Refused."""
        self._refused()

    def save_state(self, directory: Path, *, time_to_live: float | None = None) -> Pending[None]:  # noqa: ARG002
        """Refused."""
        self._refused()

    def load_state(self, directory: Path) -> Pending[None]:  # noqa: ARG002
        """Refused."""
        self._refused()


def tokens_of(choice: Mapping[str, Any]) -> Tokens | None:
    """The sampled token ids of a choice, shape (T,), int32; None where the server gave none."""
    if isinstance(ids := choice.get("token_ids"), list):
        return np.array(ids, np.int32)
    return _ids_in(choice.get("logprobs"))


def _ids_in(logprobs: Any) -> Tokens | None:
    if not isinstance(logprobs, Mapping):
        return None
    if isinstance(content := logprobs.get("content"), list):
        ids = [item.get("id") for item in content if isinstance(item, Mapping)]
    elif isinstance(names := logprobs.get("tokens"), list):
        ids = [_id_in(name) for name in names]
    else:
        return None
    return np.array(ids, np.int32) if all(isinstance(token, int) for token in ids) else None


def _id_in(name: object) -> int | None:
    digits = name.removeprefix(_PREFIX) if isinstance(name, str) and name.startswith(_PREFIX) else ""
    return int(digits) if digits.isdecimal() else None


def logprobs_of(choice: Mapping[str, Any]) -> Logprobs | None:
    """The logprobs of a choice, shape (T,), float32, NaN where the server gave null; None where it gave none at all."""
    given = choice.get("logprobs")
    if not isinstance(given, Mapping):
        return None
    if isinstance(content := given.get("content"), list):
        values: list[Any] = [item.get("logprob") for item in content if isinstance(item, Mapping)]
    elif isinstance(given.get("token_logprobs"), list):
        values = given["token_logprobs"]
    else:
        return None
    return np.array([np.nan if value is None else float(value) for value in values], np.float32)
