"""Whether a policy answers as somebody else did: the same words to the same questions, greedily sampled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import anyio

from actors.evaluator import EvaluatedPolicy, Evaluation
from engine.backends.errors import ContextExceeded
from engine.backends.values import SamplingParams
from engine.completion import PolicyCompleter
from engine.rendering import Message, Renderer
from engine.runtime.seeds import derive_seed
from envs.together import alike


def _text(message: Message) -> str:
    return " ".join(message.text.split())


def agreement_evaluation(
    name: str,
    conversations: Sequence[Sequence[Message]],
    renderer: Renderer,
    sampling: SamplingParams | None = None,
    *,
    same: Callable[[Message, Message], bool] | None = None,
    every: int = 20,
    concurrency: int = 32,
    seed: int = 0,
    blocking: bool = False,
) -> Evaluation:
    """Asks everything but the last message of each conversation, and reports the share of answers that agree with that one, as `agreement`.

    `sampling`: None: greedy. `same(expected, given)`: what counts as agreement; None: the same text, whitespace aside. At most `concurrency` at a time. Raises
    ValueError where there are no conversations, or one does not end with an answer.
    """
    if not conversations:
        raise ValueError(f"evaluation '{name}': there are no conversations")
    for index, conversation in enumerate(conversations):
        if len(conversation) < 2 or conversation[-1].role != "assistant":
            raise ValueError(f"evaluation '{name}': conversation {index} does not end with an answer to something")
    params = sampling or SamplingParams(temperature=0.0)
    agree = same or (lambda expected, given: _text(expected) == _text(given))

    async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
        # A greedy answer ends at the context as any other does.
        completer = PolicyCompleter(policy, renderer, max_context=getattr(policy, "max_context", None))
        limiter = anyio.Semaphore(concurrency)

        async def one(index: int) -> bool:
            *asked, expected = conversations[index]
            async with limiter:
                try:
                    reply = await completer.complete(asked, params=params, seed=derive_seed(seed, index))
                except ContextExceeded:
                    return False
            return agree(expected, reply.message)

        right = await alike([functools.partial(one, index) for index in range(len(conversations))])
        return {"agreement": sum(right) / len(right)}

    return Evaluation(name, run, every=every, blocking=blocking)
