"""A server of the Tinker API that has every answer ready, as a process of its own: what is left to measure is the client.

    python -m benchmarks.instant_tinker        # prints its address, ends with its standard input; needs the SDK, for its message formats

No weights, no queue: samples are as many tokens as were asked for, log-probs of a pass are zeros of the right shape. Answers come in the SDK's own binary
form, as the hosted service sends them. It is no test double (`engine.backends.tinker.testing` is): nothing is checked and nothing is learnt.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tinker.proto import tinker_public_pb2 as messages

MODEL = "instant"
_JSON, _BINARY = "application/json", "application/x-protobuf"


class Server:
    """The endpoints that the SDK calls while it samples and trains."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._results: dict[str, tuple[str, bytes]] = {}
        self.routes: dict[str, Callable[[bytes], tuple[str, bytes]]] = {
            "/api/v1/asample": self._sample,
            "/api/v1/forward_backward": self._forward_backward,
            "/api/v1/retrieve_future": self._retrieve,
            "/api/v1/optim_step": lambda _: self._later({"metrics": {}}),
            "/api/v1/create_model": lambda _: self._later({"model_id": "run-0", "type": "create_model"}),
            "/api/v1/save_weights_for_sampler": self._save,
            "/api/v1/create_session": lambda _: _json({"session_id": "session-0", "type": "create_session"}),
            "/api/v1/create_sampling_session": lambda _: _json(
                {"sampling_session_id": f"sampling-{next(self._ids)}", "type": "create_sampling_session"}
            ),
            "/api/v1/get_server_capabilities": lambda _: _json(
                {"supported_models": [{"model_name": MODEL, "max_context_length": 4096}]}
            ),
            "/api/v1/healthz": lambda _: _json({"status": "ok"}),
            "/api/v1/telemetry": lambda _: _json({"status": "accepted"}),
            "/api/v1/session_heartbeat": lambda _: _json({"type": "session_heartbeat"}),
            "/api/v1/get_info": lambda _: _json(
                {
                    "model_id": "run-0",
                    "model_data": {"arch": MODEL, "model_name": MODEL},
                    "type": "get_info",
                }
            ),
        }

    def answer(self, path: str, body: bytes) -> tuple[str, bytes]:
        """Content type and body. What is not known is an empty object: the SDK asks for configurations and takes its defaults."""
        if path.startswith("/api/v1/samplers/"):
            return _json({"sampler_id": path.rpartition("/")[2], "base_model": MODEL})
        route = self.routes.get(path)
        return route(body) if route is not None else _json({})

    def _later(self, result: dict[str, Any] | bytes, **more: Any) -> tuple[str, bytes]:
        name = str(next(self._ids))
        self._results[name] = (_BINARY, result) if isinstance(result, bytes) else _json(result)
        return _json({"request_id": name, "future_id": name, "status": "pending", **more})

    def _retrieve(self, body: bytes) -> tuple[str, bytes]:
        return self._results.pop(json.loads(body)["request_id"])

    def _save(self, body: bytes) -> tuple[str, bytes]:
        return self._later({"path": f"tinker://run-0/sampler_weights/{json.loads(body).get('path')}"})

    def _sample(self, body: bytes) -> tuple[str, bytes]:
        asked = json.loads(body)
        length, count = asked["sampling_params"]["max_tokens"], asked.get("num_samples", 1)
        sequence = messages.SampledSequence(
            stop_reason=messages.STOP_REASON_LENGTH,
            tokens=np.arange(length, dtype=np.int32).tobytes(),
            logprobs=np.full(length, -1.0, np.float32).tobytes(),
        )
        result = messages.SampleResponse(sequences=[sequence] * count).SerializeToString()
        return self._later(result, sample_sequence_ids=[f"{next(self._ids)}" for _ in range(count)])

    def _forward_backward(self, body: bytes) -> tuple[str, bytes]:
        asked = messages.ForwardBackwardRequest()
        asked.ParseFromString(body)
        lengths = [sum(len(chunk.encoded_text.tokens) // 4 for chunk in datum.model_input) for datum in asked.data]
        result = messages.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
        record = result.loss_fn_outputs.add()
        record.num_datums = len(lengths)
        record.fields["logprobs"].CopyFrom(
            messages.BatchedTensor(
                data=bytes(4 * sum(lengths)),
                offsets=np.concatenate(([0], 4 * np.cumsum(lengths))).astype(np.int64).tobytes(),
                dtype=messages.DTYPE_FLOAT32,
                trailing_shape=(),
            )
        )
        return self._later(result.SerializeToString())

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request, *lines = head.split("\r\n")
                headers = {
                    name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                kind, content = self.answer(request.split(" ")[1].partition("?")[0], body)
                answered = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"
                writer.write(answered.encode() + content)
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            asyncio.CancelledError,
        ):  # the client, or this server, is done
            writer.close()


def _json(value: dict[str, Any]) -> tuple[str, bytes]:
    return _JSON, json.dumps(value).encode()


async def _serve() -> None:
    server = await asyncio.start_server(Server().connected, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
