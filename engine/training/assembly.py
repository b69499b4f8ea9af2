"""From trajectories to training sequences.

    turn 1   [ prompt........ | completion ]
    turn 2   [ prompt........ | completion | observation | completion ]        extends turn 1: one datum for both
    turn 3   [ something rewritten | completion ]                              does not: a second datum

A datum of L tokens has L − 1 positions: position t reads token t and is asked for token t + 1. `logprobs`, `advantages` and `mask` stand at the
position that is asked for the sampled token, and are zero everywhere else.

Dimension suffixes: `G` members of a group, `N` sampled tokens of a group, `L` tokens of all of a group's sequences laid end to end.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, ImageChunk, Logprobs, ModelInput, TokenChunk, Tokens
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn

TurnFilter = Callable[[Turn], bool]


class _Layout:
    """Pieces of a group's sequences, laid end to end: observation, action, observation, action, ..."""

    __slots__ = ("lengths", "logprobs", "members", "pieces", "sequences", "trained")

    def __init__(self) -> None:
        self.pieces: list[Tokens] = []
        self.lengths: list[int] = []
        self.logprobs: list[Logprobs] = []
        self.members: list[int] = []
        self.trained: list[bool] = []
        self.sequences: list[tuple[int, ModelInput | None]] = []
        """Length of each sequence, and its input where that holds an image and cannot be cut from the tokens."""


def assemble(
    group: TrajectoryGroup,
    advantages: NDArray[Any],
    *,
    train_turn: TurnFilter | None = None,
    without_tokens: Literal["error", "skip"] = "error",
) -> list[Datum]:
    """A group as training data: as few sequences as possible, members in order.

    Args:
        group: what was rolled out.
        advantages: shape (G,), one for each member, or (N,), one for each sampled token (members in order, their turns in order).
        train_turn: turns for which it is false (say, those that could not be parsed) stay in the context and get mask and advantage 0.
        without_tokens: what to do with a member that was asked and sampled nothing: an error, or no datum. One that was never asked (the game was over
            before its first turn) gives none.

    Returns:
        Datums with `target_tokens` (int32), `logprobs` of the sampler, `advantages` and `mask` (float32, 1 on what is trained), each of the input's length.

    Raises:
        ValueError: naming the member and turn: an empty group, advantages of a wrong shape or not finite, sampler logprobs that are missing or not
            finite, a prompt without tokens, a member without sampled tokens.
    """
    if not group.trajectories:
        raise ValueError(f"cannot assemble an empty group{_tagged(group)}: it has no trajectories")
    layout = _Layout()
    images: dict[ImageChunk, int] = {}
    for member, trajectory in enumerate(group.trajectories):
        laid_out = _lay_out(layout, trajectory, member, train_turn, images)
        if not laid_out and trajectory.turns and without_tokens == "error":
            raise ValueError(
                f"member {member} of the group{_tagged(group)} has no sampled tokens, so there is nothing to train on (ended: {trajectory.end})"
            )
    return _cut(layout, _per_token(layout, group, np.asarray(advantages))) if layout.pieces else []


def _tagged(group: TrajectoryGroup) -> str:
    return f" ({', '.join(group.tags)})" if group.tags else ""


def _lay_out(
    layout: _Layout, trajectory: Trajectory, member: int, train_turn: TurnFilter | None, images: dict[ImageChunk, int]
) -> bool:
    """Adds a trajectory's sequences; false when it sampled nothing."""
    sampled = False
    before = b""  # the sequence so far, as bytes: comparing those is one memcmp
    length = 0
    for number, turn in enumerate(trajectory.turns):
        prompt, completion = turn.prompt, turn.completion
        first = prompt.chunks[0] if len(prompt.chunks) == 1 else None
        prompt_tokens = first.tokens if isinstance(first, TokenChunk) else _with_placeholders(prompt, images)
        action, logprobs = completion.tokens, completion.logprobs
        if len(action) != len(logprobs):
            raise ValueError(
                f"member {member}, turn {number}: {len(action)} sampled tokens but {len(logprobs)} logprobs"
            )
        if not len(action):
            continue  # nothing was said: the next observation decides whether the sequence goes on
        if not len(prompt_tokens):
            raise ValueError(
                f"member {member}, turn {number}: the prompt has no tokens, so its first sampled token cannot be predicted from anything"
            )
        is_last = number == len(trajectory.turns) - 1
        if sampled or not is_last:  # a single turn has nothing to be compared with
            as_bytes = prompt_tokens.tobytes()
            extends = sampled and as_bytes.startswith(before)
            before = as_bytes + action.tobytes()
        else:
            extends = False
        observation = prompt_tokens[length:] if extends else prompt_tokens
        length = len(prompt_tokens) + len(action)
        sequence = (length, _image_input(prompt, action) if images else None)
        if extends:
            layout.sequences[-1] = sequence
        else:
            layout.sequences.append(sequence)
        layout.pieces += (observation, action)
        layout.lengths += (len(observation), len(action))
        layout.logprobs.append(logprobs)
        layout.members.append(member)
        layout.trained.append(train_turn is None or train_turn(turn))
        sampled = True
    return sampled


def _with_placeholders(prompt: ModelInput, images: dict[ImageChunk, int]) -> Tokens:
    """Token ids with a negative number of its own for each different image, so that sequences with images compare like those without."""
    parts = []
    for chunk in prompt.chunks:
        if isinstance(chunk, ImageChunk):
            parts.append(np.full(chunk.length, images.setdefault(chunk, -1 - len(images)), np.int32))
        else:
            parts.append(chunk.tokens)
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _image_input(prompt: ModelInput, action: Tokens) -> ModelInput | None:
    if all(type(chunk) is TokenChunk for chunk in prompt.chunks):
        return None
    return prompt.append(action[:-1]) if len(action) > 1 else prompt


def _per_token(layout: _Layout, group: TrajectoryGroup, advantages: NDArray[Any]) -> NDArray[np.float32]:
    """Advantages of the sampled tokens that were laid out, shape (N,)."""
    action_lengths = layout.lengths[1::2]
    tokens, members = sum(action_lengths), len(group.trajectories)
    if advantages.shape == (members,):
        values_N = np.repeat(advantages.astype(np.float32)[layout.members], action_lengths)
    elif advantages.shape == (tokens,):
        values_N = advantages.astype(np.float32)
    else:
        raise ValueError(
            f"advantages of shape {advantages.shape} fit neither the group's {members} members nor its {tokens} sampled tokens{_tagged(group)}"
        )
    if not np.isfinite(values_N).all():
        at = int(np.flatnonzero(~np.isfinite(values_N))[0])
        member = layout.members[int(np.searchsorted(np.cumsum(action_lengths), at, side="right"))]
        raise ValueError(
            f"the advantage of member {member} of the group{_tagged(group)} is {values_N[at]}; advantages must be finite"
        )
    if not all(layout.trained):
        values_N = np.where(np.repeat(layout.trained, action_lengths), values_N, np.float32(0))
    return values_N


def _cut(layout: _Layout, advantages_N: NDArray[np.float32]) -> list[Datum]:
    """The datums: views into arrays that hold the whole group, so that the work per sequence is slicing."""
    tokens_L = np.concatenate(layout.pieces)
    flags = np.zeros(len(layout.lengths), bool)
    flags[1::2] = True
    action_L = flags.repeat(layout.lengths)
    logprobs_N = np.concatenate(layout.logprobs)
    if not np.isfinite(logprobs_N).all():
        at = int(np.flatnonzero(~np.isfinite(logprobs_N))[0])
        turn = int(np.searchsorted(np.cumsum(layout.lengths[1::2]), at, side="right"))
        raise ValueError(
            f"member {layout.members[turn]}: the sampler's logprob of a sampled token is {logprobs_N[at]}; it must be finite"
        )
    targets_L = tokens_L if tokens_L.min() >= 0 else np.maximum(tokens_L, 0)  # an image has no token to predict
    logprobs_L, advantages_L = np.zeros((2, len(tokens_L)), np.float32)
    logprobs_L[action_L] = logprobs_N
    advantages_L[action_L] = advantages_N
    mask_L = action_L.astype(np.float32)
    if not all(layout.trained):
        mask_L[action_L] = np.repeat(layout.trained, layout.lengths[1::2])
    datums = []
    start = 0
    for length, image_input in layout.sequences:
        end = start + length
        model_input = image_input or ModelInput((TokenChunk(tokens_L[start : end - 1]),))
        start += 1
        loss_inputs = {
            "target_tokens": targets_L[start:end],
            "logprobs": logprobs_L[start:end],
            "advantages": advantages_L[start:end],
            "mask": mask_L[start:end],
        }
        datums.append(Datum(model_input, loss_inputs))
        start = end
    return datums


# ---- minibatches ---------------------------------------------------------------------------------------------------------------------


def split_by_tokens(tokens: Sequence[int], parts: int) -> list[list[int]]:
    """Indices in `parts` non-empty minibatches of nearly the same number of tokens; inside each, in their order.

    Longest first, each to the lightest so far: at most 4/3 of the best possible maximum (Graham 1969). The same input gives the same split; ties go to the
    earlier index and the earlier part. Raises ValueError when there are fewer items than parts.
    """
    if not 1 <= parts <= len(tokens):
        raise ValueError(f"cannot split {len(tokens)} items into {parts} minibatches: each needs at least one")
    # An empty part goes first even beside others without tokens, so that none stays empty.
    lightest = [(0, 0, part) for part in range(parts)]
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        load, count, part = lightest[0]
        heapq.heapreplace(lightest, (load + tokens[index], count + 1, part))
        chosen[part].append(index)
    return [sorted(part) for part in chosen]


def pack_by_tokens(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in few minibatches of at most `budget` tokens each, balanced by tokens; deterministic.

    Starts from the fewest that could do and adds one until the balanced split fits. Raises ValueError, naming it, for an item above the budget.
    """
    if not tokens:
        return []
    longest = max(range(len(tokens)), key=lambda i: tokens[i])
    if tokens[longest] > budget:
        raise ValueError(
            f"item {longest} has {tokens[longest]} tokens, more than the budget of {budget} for a minibatch"
        )
    fewest = max(1, -(-sum(tokens) // budget), sum(2 * count > budget for count in tokens))
    for parts in range(fewest, len(tokens) + 1):
        split = split_by_tokens(tokens, parts)
        if max(sum(tokens[i] for i in part) for part in split) <= budget:
            return split
    return [[index] for index in range(len(tokens))]
