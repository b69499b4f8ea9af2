"""A sentence encoder on this machine: any Hugging Face encoder, pooled to one vector a text.

    async with open_encoder("intfloat/e5-base-v2", query_prefix="query: ", document_prefix="passage: ") as embedder:
        embeddings_N_D = await embedder.embed(["where is Paris?"], purpose="query")

Where a model says how it is to be used, in the files that sentence-transformers writes beside the weights (pooling, longest text, prompts), that is
what is done. One thread computes; texts of calls that come while it is busy are computed together.

Dimension suffixes: `N` texts, `T` tokens, `D` dimensions. Importing this module loads no torch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import numpy as np

from engine.backends.errors import BackendError
from engine.backends.futures import wait_for
from engine.backends.local.models import require_torch
from engine.backends.local.threads import WorkQueue
from engine.retrieval.ports import Embeddings, Purpose

Pooling = Literal["mean", "cls", "last"]
LONGEST = 512
"""Tokens of a text where neither the caller nor the model says otherwise."""
_POOLING_KEYS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}


@asynccontextmanager
async def open_encoder(
    model: str | Path,
    *,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    query_prefix: str | None = None,
    document_prefix: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    threads: int | None = None,
) -> AsyncIterator[LocalEncoder]:
    """An `Embedder` for a Hugging Face name or a directory. `None` stands for what the model itself says.

    - `pooling`: mean of the tokens' states, the first one's, or the last one's; where the model does not say either, the mean.
    - `max_length`: tokens of a text that are read, the prefix included; the rest is cut off. Where the model does not say, its number of positions or 512.
    - `query_prefix`, `document_prefix`: put before each text by what it is for; where the model does not say, nothing.
    - `batch_size`: texts computed at once. With 1 no bit of an embedding depends on its company; above, the last ones may.
    - `device`: as torch names it; None: "cuda" where there is a GPU, else "cpu".
    - `threads`: CPU threads; None: torch's choice.

    Raises BackendError, in one line that says what to do, where a package is missing or the model cannot be loaded.
    """
    if batch_size < 1 or (max_length is not None and max_length < 2):
        raise BackendError(
            f"batch_size is {batch_size} and max_length {max_length}: they must be at least 1 and 2 (a text has an end)"
        )

    def start() -> LocalEncoder:
        require_torch()
        network, tokenizer, stated = _load(model)
        settings = _Settings(
            pooling=pooling or stated.pooling or "mean",
            max_length=min(max_length or stated.max_length or LONGEST, stated.positions or 10**9),
            query_prefix=stated.query_prefix if query_prefix is None else query_prefix,
            document_prefix=stated.document_prefix if document_prefix is None else document_prefix,
            batch_size=batch_size,
            device=device,
            threads=threads,
        )
        return LocalEncoder(network, tokenizer, settings)

    encoder = await anyio.to_thread.run_sync(start)
    try:
        yield encoder
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(encoder.close)


@attrs.frozen
class _Stated:
    """What a model's own files say; None and "" where they say nothing."""

    pooling: Pooling | None = None
    max_length: int | None = None
    positions: int | None = None
    query_prefix: str = ""
    document_prefix: str = ""


@attrs.frozen
class _Settings:
    pooling: Pooling
    max_length: int
    query_prefix: str
    document_prefix: str
    batch_size: int
    device: str | None
    threads: int | None


class LocalEncoder:
    """See `open_encoder`. An `Embedder`."""

    def __init__(self, network: Any, tokenizer: Any, settings: _Settings) -> None:
        import torch

        self.settings = settings
        self._device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._network = network.to(self._device).eval()
        self._tokenizer = tokenizer
        self._asks: list[tuple[list[str], Future[Embeddings]]] = []
        self._lock = threading.Lock()
        self._queue = WorkQueue("callsheet-encoder", self._prepare)

    @property
    def dimensions(self) -> int:
        """The width of the model."""
        return int(self._network.config.hidden_size)

    @property
    def unit_norm(self) -> bool:
        """Always."""
        return True

    async def embed(self, texts: Sequence[str], *, purpose: Purpose = "document") -> Embeddings:
        """See `Embedder`."""
        if not texts:
            await anyio.lowlevel.checkpoint()
            return np.empty((0, self.dimensions), np.float32)
        prefix = self.settings.query_prefix if purpose == "query" else self.settings.document_prefix
        future: Future[Embeddings] = Future()
        with self._lock:
            self._asks.append(([prefix + text for text in texts], future))
        self._queue.submit(self._answer)
        return await wait_for(future)

    def close(self) -> None:
        """Ends the thread; calls under way fail with BackendError. Blocks until it has ended."""
        self._queue.close()
        with self._lock:
            asks, self._asks = self._asks, []
        for _, future in asks:
            future.set_exception(BackendError("the encoder was closed before it had embedded these texts"))

    # ---- in the thread

    def _prepare(self) -> None:
        import torch

        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)

    def _answer(self) -> None:
        """Everything that was asked for by now; what was asked for while this runs is for the next."""
        with self._lock:
            asks, self._asks = self._asks, []
        if not asks:
            return
        try:
            embeddings_N_D = self._embed([text for texts, _ in asks for text in texts])
        except BaseException as error:  # noqa: BLE001  (it belongs to those who asked)
            for _, future in asks:
                future.set_exception(error)
            return
        start = 0
        for texts, future in asks:
            future.set_result(embeddings_N_D[start : start + len(texts)])
            start += len(texts)

    def _embed(self, texts: list[str]) -> Embeddings:
        unique = list(dict.fromkeys(texts))
        encoded = self._tokenizer(unique, truncation=True, max_length=self.settings.max_length)["input_ids"]
        order = sorted(range(len(unique)), key=lambda index: len(encoded[index]))  # alike lengths need little padding
        embeddings_N_D = np.empty((len(unique), self.dimensions), np.float32)
        for start in range(0, len(order), self.settings.batch_size):
            some = order[start : start + self.settings.batch_size]
            embeddings_N_D[some] = self._forward([encoded[index] for index in some])
        place = {text: index for index, text in enumerate(unique)}
        return embeddings_N_D[[place[text] for text in texts]]

    def _forward(self, encoded: list[list[int]]) -> Embeddings:
        import torch

        longest = max(map(len, encoded))
        tokens_N_T = torch.full((len(encoded), longest), self._tokenizer.pad_token_id or 0)
        mask_N_T = torch.zeros((len(encoded), longest), dtype=torch.long)
        for row, ids in enumerate(encoded):
            tokens_N_T[row, : len(ids)] = torch.tensor(ids)
            mask_N_T[row, : len(ids)] = 1
        mask_N_T = mask_N_T.to(self._device)
        with torch.inference_mode():
            states_N_T_D = self._network(
                input_ids=tokens_N_T.to(self._device), attention_mask=mask_N_T
            ).last_hidden_state.float()
            if self.settings.pooling == "mean":
                weights_N_T_1 = mask_N_T[..., None].float()
                pooled_N_D = (states_N_T_D * weights_N_T_1).sum(1) / weights_N_T_1.sum(1)
            elif self.settings.pooling == "cls":
                pooled_N_D = states_N_T_D[:, 0]
            else:
                last_N = mask_N_T.sum(1) - 1
                pooled_N_D = states_N_T_D[torch.arange(len(encoded)), last_N]
            unit_N_D = torch.nn.functional.normalize(pooled_N_D, dim=1)
        return unit_N_D.cpu().numpy()


# ---- loading


def _load(model: str | Path) -> tuple[Any, Any, _Stated]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from engine.backends.local.models import quiet_transformers

    quiet_transformers()
    try:
        network = AutoModel.from_pretrained(model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(
            f"no encoder {str(model)!r}: it is neither a directory with a Hugging Face encoder nor a name that can be loaded here ({reason})"
        ) from error
    if getattr(network.config, "is_encoder_decoder", False):
        raise BackendError(f"{str(model)!r} has a decoder too: an encoder alone is wanted, such as BERT and its kin")
    return network, tokenizer, _stated(model, network.config)


def _stated(model: str | Path, config: Any) -> _Stated:
    pooling = _json_beside(model, "1_Pooling/config.json")
    chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    chosen += [key for key in (pooling.get("pooling_mode"),) if isinstance(key, str)]  # as newer versions write it
    if chosen and (len(chosen) > 1 or chosen[0] not in _POOLING_KEYS):
        raise BackendError(
            f"encoder {str(model)!r} pools by {' and '.join(chosen)}, which is not offered here: give pooling='mean', 'cls' or 'last'"
        )
    prompts = _json_beside(model, "config_sentence_transformers.json").get("prompts") or {}
    length = _json_beside(model, "sentence_bert_config.json").get("max_seq_length")
    return _Stated(
        pooling=_POOLING_KEYS[chosen[0]] if chosen else None,
        max_length=length,
        positions=_positions(config),
        query_prefix=prompts.get("query", ""),
        document_prefix=prompts.get("document", prompts.get("passage", "")),
    )


def _positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa's first position is behind the padding's.
    return None if positions is None else positions - (2 if "roberta" in getattr(config, "model_type", "") else 0)


def _json_beside(model: str | Path, name: str) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    found = cached_file(
        str(model), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if found is None:
        return {}
    value = json.loads(Path(found).read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
