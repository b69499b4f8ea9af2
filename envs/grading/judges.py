"""Models as judges: a question to any completer, and a verdict read strictly from its reply.

    messages ──Completer──> reply ──parse──> verdict
        ^                                │
        └── again, with another seed ────┘ no verdict in it

A reply without a verdict is never taken for one: it is asked for again, and when no attempt is left, `JudgeFailed` says so. What that does to a reward is
for whoever asked to decide.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio
import attrs

from engine.backends.errors import BackendError, TransientError
from engine.backends.values import SamplingParams
from engine.completion import Completer, Reply
from engine.rendering import Message, RenderError
from engine.runtime.seeds import derive_seed
from envs.budgets import within

T = TypeVar("T")
_positive: Any = attrs.validators.ge(1)


class JudgeFailed(Exception):
    """A judge gave no verdict, as often as it was asked."""


class NoVerdict(ValueError):
    """A reply that holds no verdict in the form that was asked for: the message says what is wrong with it."""


@attrs.frozen(kw_only=True)
class JudgeSettings:
    """How a judge is asked."""

    max_tokens: int = attrs.field(default=512, validator=_positive)
    """Longest reply, reasons included."""
    temperature: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    """Of the first attempt."""
    retry_temperature: float = attrs.field(default=0.7, validator=attrs.validators.ge(0))
    """Least temperature of further attempts: a judge that is asked greedily would say the same again."""
    attempts: int = attrs.field(default=3, validator=_positive)
    """How often a verdict is asked for before the judge has failed."""
    concurrency: int = attrs.field(default=32, validator=_positive)
    """Most questions to this judge under way at once."""
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    """Most seconds of one attempt; running out counts as an attempt without a verdict. None: no limit."""
    cache: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Replies remembered, those used last: the same question is then not asked twice. 0: none."""
    seed: int = 0
    """Of the replies, with what the question says: the same question is asked with the same seeds, whenever it comes."""


@attrs.define
class JudgeCounts:
    """What a judge has done so far."""

    questions: int = 0
    remembered: int = 0
    """Of the questions: answered from memory."""
    replies: int = 0
    retries: int = 0
    failed: int = 0
    """Of the questions: no verdict in any attempt."""


class Judge:
    """A completer that is asked for verdicts, at most `settings.concurrency` at a time."""

    def __init__(self, completer: Completer, settings: JudgeSettings | None = None, *, name: str = "judge") -> None:
        self.name = name
        self.settings = settings or JudgeSettings()
        self.counts = JudgeCounts()
        self._completer = completer
        self._slots = anyio.Semaphore(self.settings.concurrency)
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._asking: dict[bytes, tuple[anyio.Lock, int]] = {}

    async def ask(self, messages: Sequence[Message], parse: Callable[[str], T]) -> T:
        """The verdict: what `parse` makes of the reply's text.

        `parse` raises NoVerdict for a text without one. Raises JudgeFailed when every attempt ended so, in a passing failure of the completer or in a
        timeout, or where the completer cannot answer this question at all.
        """
        self.counts.questions += 1
        key = _digest(messages)
        if not self.settings.cache:
            return (await self._ask(messages, key, parse))[1]
        lock, waiting = self._asking.get(key, (anyio.Lock(), 0))
        self._asking[key] = lock, waiting + 1
        try:
            async with lock:  # whoever asks the same meanwhile waits for this reply, or asks when it fails
                return await self._remembering(messages, key, parse)
        finally:
            _, waiting = self._asking.pop(key)
            if waiting > 1:
                self._asking[key] = lock, waiting - 1

    async def _remembering(self, messages: Sequence[Message], key: bytes, parse: Callable[[str], T]) -> T:
        if key in self._known:
            self._known.move_to_end(key)
            try:
                verdict = parse(self._known[key])
            except NoVerdict:  # another kind of verdict was wanted then
                pass
            else:
                self.counts.remembered += 1
                return verdict
        text, verdict = await self._ask(messages, key, parse)
        self._known[key] = text
        self._known.move_to_end(key)
        while len(self._known) > self.settings.cache:
            self._known.popitem(last=False)
        return verdict

    async def _ask(self, messages: Sequence[Message], key: bytes, parse: Callable[[str], T]) -> tuple[str, T]:
        """The reply that held a verdict, and the verdict."""
        settings = self.settings
        problem = ""
        for attempt in range(settings.attempts):
            self.counts.retries += attempt > 0
            try:
                reply = await self._complete(messages, key, attempt)
            except (TransientError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            except (BackendError, RenderError) as error:  # asking again would not help
                self.counts.failed += 1
                raise JudgeFailed(f"{self.name} cannot be asked this: {error}") from error
            self.counts.replies += 1
            text = _after_reasoning(reply.text)
            try:
                return text, parse(text)
            except NoVerdict as error:
                cut = f" (it was cut off at {settings.max_tokens} tokens)" if reply.stop_reason == "length" else ""
                problem = f"{error}{cut}; it said {_quoted(text)}"
        self.counts.failed += 1
        raise JudgeFailed(f"{self.name} gave no verdict in {settings.attempts} attempts: {problem}")

    async def _complete(self, messages: Sequence[Message], key: bytes, attempt: int) -> Reply:
        settings = self.settings
        temperature = max(settings.temperature, settings.retry_temperature) if attempt else settings.temperature
        params = SamplingParams(settings.max_tokens, temperature)
        seed = derive_seed(settings.seed, int.from_bytes(key[:8], "big"), attempt)
        async with self._slots:
            with within(settings.timeout, "grading", f"a reply of {self.name}"):
                return await self._completer.complete(messages, params=params, seed=seed)


def _digest(messages: Sequence[Message]) -> bytes:
    return hashlib.sha256(repr(tuple(messages)).encode()).digest()


def _after_reasoning(text: str) -> str:
    """What follows the reasoning of a model whose renderer left it in the text."""
    return text.rpartition("</think>")[2]


def _quoted(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}")


# ---- verdicts


@attrs.frozen
class Scale:
    """What a score lies on."""

    lowest: float = 0.0
    highest: float = 1.0
    whole: bool = True
    """Whole numbers only."""

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.lowest) and math.isfinite(self.highest) and self.lowest < self.highest):
            raise ValueError(
                f"a scale goes from a lower number to a higher one, not from {self.lowest} to {self.highest}"
            )

    def share(self, score: float) -> float:
        """The score between 0 (lowest) and 1 (highest)."""
        return (score - self.lowest) / (self.highest - self.lowest)

    def __str__(self) -> str:
        return f"{'a whole number' if self.whole else 'a number'} from {self.lowest:g} to {self.highest:g}"


_NUMBER = re.compile(r"[+\-−]?[0-9]{1,12}(?:\.[0-9]{1,12})?")


def score_on(scale: Scale, tag: str = "score") -> Callable[[str], float]:
    """Reads `<score>4</score>`: one number on the scale, said once, or more than once alike. `4/5` is understood where 5 is the highest."""

    def parse(text: str) -> float:
        said = tagged(text, tag).replace("−", "-")
        number, slash, out_of = (part.strip() for part in said.partition("/"))
        if not _NUMBER.fullmatch(number) or (slash and not _is_number(out_of, scale.highest)):
            raise NoVerdict(f"{said!r} is no number")
        score = float(number)
        if scale.whole and score != int(score):
            raise NoVerdict(f"{said} is no whole number")
        if not scale.lowest <= score <= scale.highest:
            raise NoVerdict(f"{said} is not {scale}")
        return score

    return parse


def choice_of(labels: Sequence[str], tag: str = "verdict") -> Callable[[str], str]:
    """Reads `<verdict>A</verdict>`: one of the labels, said once, or more than once alike. Case does not matter."""
    known = {label.casefold(): label for label in labels}

    def parse(text: str) -> str:
        said = tagged(text, tag)
        if said.casefold() not in known:
            raise NoVerdict(f"{said!r} is none of {', '.join(labels)}")
        return known[said.casefold()]

    return parse


def tagged(text: str, tag: str) -> str:
    """What stands between `<tag>` and `</tag>`, without white space around it. Raises NoVerdict where nothing does, or different things do."""
    found: set[str] = {match.strip() for match in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.IGNORECASE | re.DOTALL)}
    if not found:
        raise NoVerdict(f"there is no <{tag}>…</{tag}> in the reply")
    if len(found) > 1:
        raise NoVerdict(f"the reply holds {len(found)} different verdicts: {', '.join(sorted(map(_quoted, found)))}")
    return found.pop()


def _is_number(text: str, value: float) -> bool:
    return bool(_NUMBER.fullmatch(text)) and float(text) == value
