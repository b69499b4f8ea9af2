"""How sequences share a forward pass: in parts that fit a budget, with a common beginning read once.

The samples of a group begin with the same prompt. Computed separately, G samples repeat its work G times; here their common tokens stand
once in a *pack*, and each sequence adds what is its own, seeing the common part through attention. The sums over tokens, and
their gradients, are the same.

    separately          in a pack
    PPPPPaaa            PPPPP          <- the family's prefix, once
    PPPPPbbbb                aaa·      <- own tokens, padded to the longest
    PPPPPcc                  bbbb
                             cc··

Dimension suffixes: `B` sequences, `T` positions, `F` families, `N` positions of all sequences, one sequence after the other, `U` positions that are
computed (prefixes, then own tokens, padding included).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from engine.backends.values import Tokens

_LEAST_SHARED = 4
"""Fewer common tokens are not worth a family."""


@attrs.frozen
class Family:
    """Sequences with a common beginning."""

    members: tuple[int, ...]
    shared: int
    """Tokens that all begin with and that are computed once; 0 for a sequence by itself, or for a pair that shares nothing. Every member is longer."""


@attrs.frozen
class Pack:
    """Families that go through one forward pass."""

    families: tuple[Family, ...]

    @property
    def members(self) -> list[int]:
        """Indices of the sequences, in the pack's order."""
        return [member for family in self.families for member in family.members]


def plan(sequences: Sequence[Tokens], budget: int, *, share: bool = True) -> list[Pack]:
    """Packs of at most `budget` computed positions (padding included) that hold every sequence once; a longer sequence goes alone.

    Sequences of similar length come together, so that little is padded. Without `share`, no beginning is taken for common.
    """
    lengths = [len(sequence) for sequence in sequences]
    families = _families(sequences) if share else list(apart(sequences).families)
    families.sort(key=lambda family: max(lengths[member] for member in family.members))
    return _packed([part for family in families for part in _split(family, lengths, budget)], lengths, budget)


def plan_pairs(sequences: Sequence[Tokens], budget: int, *, share: bool = True) -> list[Pack]:
    """As `plan`, for sequences of which 0 and 1, 2 and 3, ... belong together: a pair is in one pack, side by side and in its order, its common beginning
    read once; a pair that is larger than the budget goes alone."""
    lengths = [len(sequence) for sequence in sequences]
    families = []
    for first in range(0, len(sequences), 2):
        common = _common(sequences[first], sequences[first + 1]) if share else 0
        families.append(Family((first, first + 1), common if common >= _LEAST_SHARED else 0))
    families.sort(key=lambda family: max(lengths[member] for member in family.members) - family.shared)
    return _packed(families, lengths, budget)


def _packed(families: Sequence[Family], lengths: Sequence[int], budget: int) -> list[Pack]:
    packs: list[list[Family]] = []
    size = _Size()
    for family in families:
        grown = size.with_family(family, lengths)
        if packs and grown.positions <= budget:
            packs[-1].append(family)
            size = grown
        else:
            packs.append([family])
            size = _Size().with_family(family, lengths)
    return [Pack(tuple(pack)) for pack in packs]


def apart(sequences: Sequence[Tokens]) -> Pack:
    """One pack in which nothing is shared."""
    return Pack(tuple(Family((index,), 0) for index in range(len(sequences))))


def _families(sequences: Sequence[Tokens]) -> list[Family]:
    """In sorted order sequences with a common beginning are neighbours. One joins its neighbour's family unless that would halve
    what the family shares: a system prompt common to all problems must not hide what each problem's samples have in common."""
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].tobytes())
    families: list[tuple[list[int], int]] = []
    for index in order:
        if families:
            members, shared = families[-1]
            common = _common(sequences[members[-1]], sequences[index])
            if common >= _LEAST_SHARED and (len(members) == 1 or 2 * common >= shared):
                families[-1] = ([*members, index], min(shared, common))
                continue
        families.append(([index], len(sequences[index]) - 1))
    return [Family(tuple(members), shared if len(members) > 1 else 0) for members, shared in families]


def _common(a: Tokens, b: Tokens) -> int:
    """Tokens that two sequences begin with in common, leaving each at least one of its own."""
    longest = min(len(a), len(b)) - 1
    differ = np.flatnonzero(a[:longest] != b[:longest])
    return int(differ[0]) if len(differ) else longest


@attrs.frozen
class _Size:
    """Positions computed for a pack: prefixes padded to the longest prefix, own tokens to the longest own part."""

    prefixes: int = 0
    longest_prefix: int = 0
    own: int = 0
    longest_own: int = 0

    @property
    def positions(self) -> int:
        return self.prefixes * self.longest_prefix + self.own * self.longest_own

    def with_family(self, family: Family, lengths: Sequence[int]) -> _Size:
        longest = max(lengths[member] for member in family.members) - family.shared
        return _Size(
            self.prefixes + bool(family.shared),
            max(self.longest_prefix, family.shared),
            self.own + len(family.members),
            max(self.longest_own, longest),
        )


def _split(family: Family, lengths: Sequence[int], budget: int) -> list[Family]:
    """A family too large for one pack, in parts that each read the common beginning again."""
    parts: list[list[int]] = []
    for member in sorted(family.members, key=lambda member: lengths[member]):
        # The members before are no longer than this one.
        if parts and family.shared + (len(parts[-1]) + 1) * (lengths[member] - family.shared) <= budget:
            parts[-1].append(member)
        else:
            parts.append([member])
    return [Family(tuple(part), family.shared if len(part) > 1 else 0) for part in parts]


@attrs.frozen(eq=False)
class Packed:
    """A pack as tensors: U = F · P prefix positions, then B · T own positions."""

    tokens_U: Tensor
    positions_U: Tensor
    """Place of each token in its sequence."""
    prefix_shape: tuple[int, int]
    """(F, P): families with a prefix, and the longest prefix."""
    own_shape: tuple[int, int]
    """(B, T)."""
    family_B: Tensor
    """Which prefix a sequence goes on from; one without any points at 0, and sees nothing of it."""
    hidden_B_T_S: Tensor | None
    """What own positions must not see among S = P + T keys, true where hidden; None where nothing is shared (then: causal)."""
    rows_N: Tensor
    """Where in U each position of each sequence (in the pack's order) is computed."""

    @classmethod
    def of(cls, pack: Pack, sequences: Sequence[Tokens], device: torch.device) -> Packed:
        """The pack's sequences, as `plan` was given them."""
        prefixes = [sequences[family.members[0]][: family.shared] for family in pack.families if family.shared]
        longest_prefix = max(map(len, prefixes), default=0)
        numbers = np.cumsum([bool(family.shared) for family in pack.families]) - 1
        rows = [
            (sequences[member], family.shared, max(int(number), 0))
            for family, number in zip(pack.families, numbers, strict=True)
            for member in family.members
        ]
        longest_own = max(len(sequence) - shared for sequence, shared, _ in rows)
        before = len(prefixes) * longest_prefix
        tokens_U = np.zeros(before + len(rows) * longest_own, np.int64)
        shared_B = np.array([shared for _, shared, _ in rows])
        for number, prefix in enumerate(prefixes):
            tokens_U[number * longest_prefix :][: len(prefix)] = prefix
        places = []
        for row, (sequence, shared, number) in enumerate(rows):
            start = before + row * longest_own
            tokens_U[start : start + len(sequence) - shared] = sequence[shared:]
            places.append(number * longest_prefix + np.arange(shared))
            places.append(start + np.arange(len(sequence) - shared))
        positions_U = np.concatenate(
            (np.tile(np.arange(longest_prefix), len(prefixes)), (shared_B[:, None] + np.arange(longest_own)).ravel())
        )
        hidden_B_T_S = None
        if prefixes:
            own_T_T = np.triu(np.ones((longest_own, longest_own), bool), 1)
            beyond_B_P = np.arange(longest_prefix) >= shared_B[:, None]
            hidden_B_T_S = np.concatenate(
                (
                    np.broadcast_to(beyond_B_P[:, None], (len(rows), longest_own, longest_prefix)),
                    np.broadcast_to(own_T_T, (len(rows), longest_own, longest_own)),
                ),
                -1,
            )
        return cls(
            torch.from_numpy(tokens_U).to(device),
            torch.from_numpy(positions_U).to(device),
            (len(prefixes), longest_prefix),
            (len(rows), longest_own),
            torch.tensor([number for _, _, number in rows], device=device),
            None if hidden_B_T_S is None else torch.from_numpy(hidden_B_T_S).to(device),
            torch.from_numpy(np.concatenate(places)).to(device),
        )
