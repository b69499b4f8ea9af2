"""The forward pass of any Hugging Face causal language model, through its own module and its own cache.

`torch.func.functional_call` gives the module the weights of the moment. It does so by exchanging the module's attributes during the
call, so a module must belong to one thread: trainer and sampler have one each, sharing the frozen parameters.

Dimension suffixes: `B` rows, `T` positions, `N` positions of several sequences in one line, `V` vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from engine.backends.errors import BackendError
from engine.backends.local.network import Prefix, pad
from engine.backends.local.packing import Pack
from engine.backends.local.parameters import Unit
from engine.backends.values import Tokens


class GenericNetwork:
    """A Hugging Face module. `names` maps the trainable tensors' names to the module's own."""

    units: Sequence[Unit] = ()
    shares_prefixes = False

    def __init__(self, module: nn.Module, names: Mapping[str, str]) -> None:
        self.module = module
        self._names = names
        get_base_model: Any = getattr(module, "get_base_model", None)  # peft's wrapper takes anything
        takes = inspect.signature((get_base_model() if get_base_model else module).forward).parameters
        self.narrow = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        # transformers 5.24 gave the argument, and the output's field, a new name; some models of one's own still have the old one.
        self.cache_name = "cache" if "cache" in takes else "past_key_values"

    def for_another_thread(self) -> GenericNetwork:
        """The same network in a module of its own; parameters and buffers are shared."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        return GenericNetwork(copy.deepcopy(self.module, shared), self._names)

    def bind(self, weights: Mapping[Unit, Tensor]) -> BoundGeneric:
        """The network computing with `weights`, the trainable tensors by unit."""
        return BoundGeneric(self, {self._names[name]: tensor for (name,), tensor in weights.items()})


class BoundGeneric:
    """A Hugging Face module with weights."""

    def __init__(self, network: GenericNetwork, tensors: Mapping[str, Tensor]) -> None:
        self._network = network
        self._tensors = dict(tensors)
        self.device = next(network.module.parameters()).device

    def call(self, **inputs: Any) -> Any:
        """The module's output."""
        return torch.func.functional_call(self._network.module, self._tensors, (), inputs)

    def call_cached(self, tokens_B_T: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Reads tokens behind what `cache` holds; gives what follows the last, logits_B_V, and the cache."""
        name = self._network.cache_name
        output = self.call(input_ids=tokens_B_T, use_cache=True, **{name: cache}, **self._network.narrow)
        cache = getattr(output, name, None)
        if cache is None:
            kind = type(self._network.module).__name__
            raise BackendError(f"{kind} keeps no key-value cache that can be handed on, which sampling here needs")
        return output.logits[:, -1].float(), cache

    def prefill(self, prompts: Sequence[Tokens]) -> list[Prefix]:
        """Reads prompts, one after the other: not every architecture bears padding."""
        prefixes = []
        for prompt in prompts:
            logits_B_V, cache = self.call_cached(pad([prompt], self.device)[0], None)
            prefixes.append(Prefix(len(prompt), cache, logits_B_V[0]))
        return prefixes

    def decode_batch(self) -> GenericBatch:
        """An empty batch."""
        return GenericBatch(self)

    def target_logprobs(
        self,
        sequences: Sequence[Tokens],
        pack: Pack,
        targets_N: Tensor,
        active_N: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Log-probabilities (N,) of a target at each position of the pack's sequences."""
        tokens_B_T, lengths_B = pad([sequences[member] for member in pack.members], self.device)
        present_B_T = torch.arange(tokens_B_T.shape[1], device=self.device) < lengths_B[:, None]
        output = self.call(input_ids=tokens_B_T, attention_mask=present_B_T.long(), use_cache=False)
        logits_N_V = output.logits[present_B_T].float()
        logprobs_N: Tensor = logits_N_V.gather(-1, targets_N[:, None])[:, 0] - logits_N_V.logsumexp(-1)
        return logprobs_N


@attrs.define(eq=False)
class _Cohort:
    """Samples of one prompt: always equally long, so their cache needs no padding and no mask."""

    cache: Any
    size: int


class GenericBatch:
    """Rows decoded in turn, cohort by cohort."""

    def __init__(self, bound: BoundGeneric) -> None:
        self._bound = bound
        self._rows: list[tuple[_Cohort, int]] = []

    def reserve(self, rows: int, length: int) -> None:
        """Nothing to do: Hugging Face's caches grow by themselves."""

    def add(self, prefix: Prefix, count: int) -> None:
        """Appends `count` rows that go on from `prefix`."""
        cache: Any = copy.deepcopy(prefix.state)
        if count > 1:
            cache.batch_repeat_interleave(count)
        cohort = _Cohort(cache, count)
        self._rows += [(cohort, index) for index in range(count)]

    def drop(self, row: int) -> None:
        """Removes a row; the last row takes its place."""
        cohort, gone = self._rows[row]
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        cohort.size -= 1
        if cohort.size:
            left = [index for index in range(cohort.size + 1) if index != gone]
            cohort.cache.batch_select_indices(torch.tensor(left, device=self._bound.device))
            self._rows = [
                (other, index - 1) if other is cohort and index > gone else (other, index)
                for other, index in self._rows
            ]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Appends one token to each row and gives what follows, logits_B_V in float32."""
        members: dict[_Cohort, list[int]] = {}
        for row, (cohort, _) in enumerate(self._rows):
            members.setdefault(cohort, []).append(row)
        parts, order = [], []
        for cohort, rows in members.items():
            rows.sort(key=lambda row: self._rows[row][1])
            logits_B_V, cohort.cache = self._bound.call_cached(tokens_B[rows][:, None], cohort.cache)
            parts.append(logits_B_V)
            order += rows
        place_B = torch.empty(len(order), dtype=torch.long)
        place_B[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[place_B.to(self._bound.device)]
