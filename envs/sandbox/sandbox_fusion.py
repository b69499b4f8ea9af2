"""Programs on a SandboxFusion server (ByteDance, Apache-2.0), over HTTP: its `/run_code`.

    async with SandboxFusion("http://localhost:8080") as sandbox:
        outcome = await sandbox.run(RunRequest("print(1)"))

What the server isolates is its own affair and cannot be found out from here, so `isolation()` claims nothing; whoever has set the server up says so with `trust`. Of the limits
it takes wall-clock time and memory; of the outcome it gives no signals by name, no usage but the time, and its output is cut here.

A server that is busy, restarting or fails by itself (429, 5xx, `SandboxError`, a broken connection, no answer) is asked again, with growing pauses; then SandboxUnavailable says
what it said. Time spent on retries is not the program's.
"""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import attrs

from envs.sandbox.port import (
    ASPECTS,
    Aspect,
    Isolation,
    RunOutcome,
    RunRequest,
    SandboxError,
    SandboxUnavailable,
    Usage,
)

if TYPE_CHECKING:
    import httpx

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes after which trying again may help."""
SHOWN = 300
"""Characters of a server's answer in a message."""


@attrs.frozen
class Retries:
    """How often, and with which pauses, a server is asked again."""

    attempts: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    """Requests in all."""
    first_pause: float = attrs.field(default=0.5, validator=attrs.validators.ge(0.0))
    """Seconds before the second; each further pause is twice as long."""
    longest_pause: float = attrs.field(default=20.0, validator=attrs.validators.ge(0.0))
    """Seconds."""

    def pause(self, attempt: int) -> float:
        """Seconds after that attempt, counted from 0."""
        return min(self.longest_pause, self.first_pause * 2.0**attempt)


class SandboxFusion:
    """A client of one server. Use as an async context manager.

    `concurrency`: runs at one time, which should not be more than the server has workers. `queue_seconds`: how long, beyond its own wall clock, a request may wait for
    the server. `languages`: the server's names for ours, where they differ. `trust`: aspects that the server is known to isolate. `client`: one's own, which is not closed.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrency: int = 16,
        queue_seconds: float = 60.0,
        retries: Retries | None = None,
        headers: Mapping[str, str] | None = None,
        languages: Mapping[str, str] | None = None,
        trust: Collection[Aspect] = (),
        require: Collection[Aspect] = (),
        client: httpx.AsyncClient | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"SandboxFusion: concurrency must be at least 1, not {concurrency}")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"SandboxFusion: {url!r} is no address of a server, such as http://localhost:8080")
        self._url = url.rstrip("/")
        self._slots = anyio.Semaphore(concurrency, fast_acquire=True)
        self._concurrency = concurrency
        self._queue_seconds = queue_seconds
        self._retries = retries or Retries()
        self._headers = dict(headers or {})
        self._languages = dict(languages or {})
        self._trust = frozenset(trust)
        self._require = frozenset(require)
        self._client = client
        self._own = client is None

    async def __aenter__(self) -> Self:
        self.isolation().require(self._require)
        if self._own:
            import httpx

            limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
            self._client = httpx.AsyncClient(limits=limits, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own and self._client is not None:
            client, self._client = self._client, None
            with anyio.CancelScope(shield=True):
                await client.aclose()

    def isolation(self) -> Isolation:
        """What the server is trusted to isolate."""
        missing = {
            aspect: "a server's isolation cannot be found out from here: name it in `trust` if you set the server up so"
            for aspect in ASPECTS
            if aspect not in self._trust
        }
        claimed = {aspect: "as the server was set up" for aspect in ASPECTS if aspect in self._trust}
        return Isolation(f"SandboxFusion at {self._url}", claimed, missing)

    async def run(self, request: RunRequest) -> RunOutcome:
        """As of `Sandbox`. Raises SandboxUnavailable when the server gave no outcome in any attempt, SandboxError when it refuses the request."""
        if self._client is None:
            raise SandboxUnavailable("SandboxFusion is not open: use `async with SandboxFusion(url) as sandbox`")
        body = self._body(request)
        said = ""
        async with self._slots:
            for attempt in range(self._retries.attempts):
                if attempt:
                    await anyio.sleep(self._retries.pause(attempt - 1))
                answer = await self._ask(self._client, body, request.limits.wall_clock)
                if isinstance(answer, str):
                    said = answer
                    continue
                return self._outcome(answer, request)
        raise SandboxUnavailable(
            f"SandboxFusion at {self._url} gave no outcome in {self._retries.attempts} attempt(s): {said}"
        )

    def _body(self, request: RunRequest) -> dict[str, Any]:
        files = {
            path: base64.b64encode(content.encode() if isinstance(content, str) else content).decode()
            for path, content in request.files.items()
        }
        return {
            "code": request.code,
            "language": self._languages.get(request.language, request.language),
            "stdin": request.stdin,
            "files": files,
            "compile_timeout": request.limits.wall_clock,
            "run_timeout": request.limits.wall_clock,
            "memory_limit_MB": request.limits.memory,
        }

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any], wall_clock: float) -> dict[str, Any] | str:
        """The server's answer; or, where asking again may help, what was wrong."""
        import httpx

        limit = 2 * wall_clock + self._queue_seconds
        try:
            with anyio.fail_after(limit):
                response = await client.post(f"{self._url}/run_code", json=body, timeout=None)
        except TimeoutError:
            return f"no answer within {limit:g} s"
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {error}"
        if response.status_code in AGAIN:
            return f"status {response.status_code}: {response.text[:SHOWN]}"
        if response.status_code != 200:
            raise SandboxError(
                f"SandboxFusion at {self._url} refuses the request with status {response.status_code}: {response.text[:SHOWN]}"
            )
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or "status" not in answer:
            raise SandboxError(f"the server at {self._url} does not answer as SandboxFusion: {response.text[:SHOWN]}")
        if answer["status"] == "SandboxError":
            return f"SandboxError: {str(answer.get('message'))[:SHOWN]}"
        return answer

    def _outcome(self, answer: dict[str, Any], request: RunRequest) -> RunOutcome:
        """The outcome of the run, or of the compilation where that went wrong."""
        ran = answer.get("run_result") or answer.get("compile_result")
        if not isinstance(ran, dict):
            raise SandboxError(f"the server at {self._url} gave no result: {json.dumps(answer)[:SHOWN]}")
        stdout, full_out = _cut(ran.get("stdout"), request.limits.output)
        stderr, full_err = _cut(ran.get("stderr"), request.limits.output)
        seconds = ran.get("execution_time")
        usage = Usage(wall_clock=None if seconds is None else float(seconds))
        code = ran.get("return_code")
        if ran.get("status") == "TimeLimitExceeded":
            return RunOutcome("wall_clock", None, None, stdout, stderr, usage)
        if full_out or full_err:
            return RunOutcome("output", None, None, stdout, stderr, usage)
        if not isinstance(code, int):
            raise SandboxError(f"the server at {self._url} gave no exit code: {json.dumps(ran)[:SHOWN]}")
        if code < 0:
            return RunOutcome("signalled", None, _signal_name(-code), stdout, stderr, usage)
        return RunOutcome("exited", code, None, stdout, stderr, usage)


def _cut(text: Any, most: int) -> tuple[str, bool]:
    """At most so many bytes of it, and whether there were more."""
    data = (text or "").encode("utf-8", "replace")
    return data[:most].decode("utf-8", "ignore"), len(data) > most


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
