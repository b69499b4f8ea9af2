"""Answers of a completer to many prompts, written as training data: what a teacher says, once, however often the work is interrupted.

    prompts ──ask──▶ completer ──reply──▶ keep? ──▶ answers.jsonl

    <directory>/answers.jsonl            the kept ones by prompt and sample, {"messages": [...]}: data for `recipes.chat_sl --data` too
    <directory>/dropped.jsonl            the others, with the reason
    <directory>/answers.partial.jsonl    what is there so far, in the order in which it came, until all of it is

An answer that is written is not asked for again: not after a crash, not after a stop. Dropped ones are counted, never silent; of them, requests that failed are
made again when work that did not come to its end is taken up.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio
import attrs

from actors.learning import StopRequest
from actors.retries import SamplerSettings, ask
from engine.backends.errors import BackendError
from engine.backends.values import SamplingParams
from engine.completion import Completer, Reply
from engine.rendering import Message
from engine.rendering.openai_format import to_openai
from engine.runtime.offload import offload
from engine.runtime.seeds import derive_seed
from engine.storage.files import append_lines, read_lines, write_atomically
from engine.storage.run_directory import RunDirectoryError

FAILED = "failed: "
ANSWERS, DROPPED, PARTIAL = "answers.jsonl", "dropped.jsonl", "answers.partial.jsonl"

Conversation = Sequence[Message]
Keep = Callable[[int, Conversation, Reply], str | None]
"""From a prompt's number, the prompt and the reply to it: None to keep it, or the reason why not."""


class Prompts(Protocol):
    """What is asked, by position: the same one each time. A list of conversations, `engine.data.Examples`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation: ...


@attrs.frozen(kw_only=True)
class GenerationSettings:
    """How answers are asked for."""

    sampling: SamplingParams = attrs.field(factory=SamplingParams)
    samples: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Answers to each prompt."""
    concurrency: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Answers asked for at once."""
    retries: SamplerSettings = attrs.field(factory=SamplerSettings)
    """How often a request is tried where the failure may pass; its `slots` are not used."""
    failure_limit: int = attrs.field(default=16, validator=attrs.validators.ge(1))
    """Requests in a row that fail for good before the work does."""
    seed: int = 0


@attrs.frozen
class Generated:
    """What came of it."""

    path: Path
    """The kept answers."""
    kept: int
    dropped: Mapping[str, int]
    """How many were not kept, by reason."""
    asked: int
    """Requests made now; the others were there already."""
    complete: bool
    """False where it was asked to stop before all was there."""

    def __str__(self) -> str:
        told = "".join(f", {count} dropped: {reason}" for reason, count in sorted(self.dropped.items()))
        return f"{self.kept} answers kept{told}"


def only_finished(_: int, __: Conversation, reply: Reply) -> str | None:
    """Keeps answers that came to their end, in the form their format wants, and say something."""
    if reply.stop_reason == "length":
        return "cut off"
    if not reply.well_formed:
        return "not well formed"
    return None if reply.text.strip() else "empty"


async def generate_answers(
    prompts: Prompts,
    completer: Completer,
    directory: Path,
    settings: GenerationSettings | None = None,
    *,
    asked: Callable[[Conversation], Conversation] = lambda prompt: prompt,
    keep: Keep = only_finished,
    stop: StopRequest | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generated:
    """Answers every prompt, `settings.samples` times, and writes prompt and answer as a conversation.

    Args:
        asked: what the completer is asked, from the prompt that is written: a system message in front of it, say, that the student shall do without.
        keep: which answers are kept. Called once for each, also when the work was interrupted.
        stop: call it to end early; the next call with the same directory goes on.
        progress: told how many of how many answers are there.

    Raises:
        RunDirectoryError: the directory holds answers to other prompts. BackendError: too many requests in a row failed; what is there is kept.
    """
    work = _Work(
        prompts, completer, directory, settings or GenerationSettings(), asked, keep, stop or StopRequest(), progress
    )
    return await work.run()


class _Work:
    def __init__(
        self,
        prompts: Prompts,
        completer: Completer,
        directory: Path,
        settings: GenerationSettings,
        asked: Callable[[Conversation], Conversation],
        keep: Keep,
        stop: StopRequest,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._prompts = prompts
        self._completer = completer
        self._directory = directory
        self._settings = settings
        self._to_ask = asked
        self._keep = keep
        self._stop = stop
        self._progress = progress
        self._rows: dict[tuple[int, int], dict[str, Any]] = {}
        self._writing = anyio.Lock()
        self._limiter = anyio.Semaphore(settings.concurrency)
        self._asked = 0
        self._failed_in_a_row = 0

    async def run(self) -> Generated:
        total = len(self._prompts) * self._settings.samples
        if (self._directory / ANSWERS).exists():
            return await offload(self._read_complete)
        await offload(self._read_partial)
        async with anyio.create_task_group() as tasks:
            for index in range(len(self._prompts)):
                missing = [k for k in range(self._settings.samples) if (index, k) not in self._rows]
                if not missing and (index, 0) in self._rows:
                    continue
                prompt = await offload(self._prompts.__getitem__, index)
                for sample in missing:
                    await self._limiter.acquire()
                    if self._stop.requested:
                        self._limiter.release()
                        break
                    tasks.start_soon(self._one, index, sample, prompt, total)
                if self._stop.requested:
                    break
        if len(self._rows) < total:
            return self._told(complete=False)
        await offload(self._finish)
        return self._told(complete=True)

    async def _one(self, index: int, sample: int, prompt: Conversation, total: int) -> None:
        try:
            row = await self._answered(index, sample, prompt)
            async with self._writing:
                if not row.get("dropped", "").startswith(
                    FAILED
                ):  # what failed may succeed when the work is taken up again
                    await offload(append_lines, self._directory / PARTIAL, [row])
                self._rows[index, sample] = row
        finally:
            self._limiter.release()
        if self._progress is not None:
            self._progress(len(self._rows), total)

    async def _answered(self, index: int, sample: int, prompt: Conversation) -> dict[str, Any]:
        settings = self._settings
        seed = derive_seed(settings.seed, index, sample)
        row: dict[str, Any] = {"index": index, "sample": sample, "digest": _digest(prompt)}
        self._asked += 1
        try:
            reply = await ask(
                lambda: self._completer.complete(self._to_ask(prompt), params=settings.sampling, seed=seed),
                settings.retries,
                settings.retries.deadline,
                seed,
                "asking for an answer",
            )
        except BackendError as error:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= settings.failure_limit:
                error.add_note(f"{self._failed_in_a_row} requests in a row failed; this was prompt {index}")
                raise
            return {**row, "dropped": f"{FAILED}{type(error).__name__}"}
        self._failed_in_a_row = 0
        reason = self._keep(index, prompt, reply)
        if reason is not None:
            return {**row, "dropped": reason}
        return {**row, "messages": [to_openai(message) for message in (*prompt, reply.message)]}

    # ---- files

    def _read_partial(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for row in read_lines(self._directory / PARTIAL):
            index, sample = int(row["index"]), int(row["sample"])
            if index < len(self._prompts) and sample < self._settings.samples:
                self._check(row, index)
                self._rows[index, sample] = row

    def _read_complete(self) -> Generated:
        kept, dropped = read_lines(self._directory / ANSWERS), read_lines(self._directory / DROPPED)
        total = len(self._prompts) * self._settings.samples
        if len(kept) + len(dropped) != total:
            raise RunDirectoryError(
                f"{self._directory}: holds {len(kept) + len(dropped)} answers where {total} are wanted: they are to other prompts; choose another directory"
            )
        for row in (*kept, *dropped):
            self._check(row, int(row["index"]))
            self._rows[int(row["index"]), int(row["sample"])] = row
        return self._told(complete=True)

    def _check(self, row: Mapping[str, Any], index: int) -> None:
        if row["digest"] != _digest(self._prompts[index]):
            raise RunDirectoryError(
                f"{self._directory}: its answer {row['index']} is to another prompt than prompt {index}; choose another directory"
            )

    def _finish(self) -> None:
        rows = [self._rows[key] for key in sorted(self._rows)]
        for name, chosen in (
            (DROPPED, [row for row in rows if "dropped" in row]),
            (ANSWERS, [row for row in rows if "dropped" not in row]),  # last: it says that all is there
        ):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
            write_atomically(self._directory / name, lines)
        (self._directory / PARTIAL).unlink(missing_ok=True)

    def _told(self, *, complete: bool) -> Generated:
        dropped = Counter(str(row["dropped"]) for row in self._rows.values() if "dropped" in row)
        kept = len(self._rows) - sum(dropped.values())
        return Generated(self._directory / ANSWERS, kept, dict(dropped), self._asked, complete)


def _digest(prompt: Conversation) -> str:
    said = json.dumps([to_openai(message) for message in prompt], ensure_ascii=False, sort_keys=True, default=repr)
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
