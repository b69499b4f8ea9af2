"""Opening: what is missing or wrong is said in one line, at once; and what lies on the server can be listed and deleted without a run."""

from __future__ import annotations

import importlib
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.backends import BackendError, RequestRejected, TransientError, tinker
from engine.backends.tinker import opening, servers
from engine.backends.tinker.options import TinkerOptions
from engine.backends.tinker.sdk import Access
from engine.backends.tinker.servers import Traits
from engine.backends.tinker.states import saved_in
from engine.backends.tinker.statuses import StatusCounter
from engine.backends.tinker.submissions import worker_thread
from engine.backends.tinker.testing import FakeTinker, Fault, Line, values

pytestmark = pytest.mark.anyio
LINES: tuple[Line, ...] = ("0.25", "0.38")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTinker:
    """In place of the SDK, the hosted service behind it."""
    made = FakeTinker()
    monkeypatch.setattr(opening, "load_sdk", lambda: made.module)
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    return made


async def refusal(kind: type[BaseException] = BackendError, **arguments: Any) -> str:
    with pytest.raises(kind) as raised:
        async with tinker.open(**{"model": "fake/table", "api_key": "tml-fake", **arguments}):
            pass
    return str(raised.value)


async def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert await refusal() == "the tinker backend needs the tinker SDK: pip install 'callsheet[tinker]'"


async def test_inflight_sampling_is_refused_with_the_reason(fake: FakeTinker) -> None:
    assert "no bound on staleness could hold. Use snapshots" in await refusal(sampling="inflight")
    assert "not 'sometimes'" in await refusal(sampling="sometimes")


async def test_options_are_checked(fake: FakeTinker) -> None:
    assert "its options: attempts, backoff, deadline" in await refusal(retries=3)
    assert "'lora_rank' must be >= 1" in await refusal(ValueError, lora_rank=0)
    assert "'snapshot_ttl' must be None (for ever) or from 3600 (an hour)" in await refusal(
        ValueError, snapshot_ttl=60.0
    )
    assert "'name' must be letters, digits" in await refusal(ValueError, name="my run")


async def test_layers_are_chosen_where_that_can_be_said() -> None:
    refused = "cannot be told which layers get adapters: leave train_mlp, train_unembed out"
    with pytest.raises(BackendError, match=refused):
        async with FakeTinker(shared_slot=True).open(train_mlp=False, train_unembed=True):
            pass
    fake = FakeTinker()
    async with fake.open(train_mlp=False):
        pass
    async with fake.open():
        pass
    assert [run.layers for run in fake.service.runs.values()] == [{"train_mlp": False}, {}]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_address_where_nothing_listens_is_said_at_once(
    fake: FakeTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in servers._PROXIES:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert await refusal(base_url=url) == f"the server at {url} does not answer: Connection refused"
        monkeypatch.setenv("TINKER_BASE_URL", f"{url}/")
        assert await refusal() == f"the server at {url} does not answer: Connection refused"
        with pytest.raises(BackendError, match="does not answer"):
            async with tinker.open_store():
                pass


async def test_who_may_and_what_is_served() -> None:
    for line in LINES:
        fake = FakeTinker(line)
        with pytest.raises(BackendError) as refused:
            async with fake.open(api_key="tml-very-secret"):
                pass
        assert "could not be opened: the API key is refused (TINKER_API_KEY, or api_key=)" in str(refused.value)
        assert "secret" not in str(refused.value)
        with pytest.raises(BackendError, match="does not serve 'other/model'; it serves fake/table"):
            async with fake.open(model="other/model"):
                pass
        assert "secret" not in repr(Access("url", "tml-very-secret"))


async def test_what_the_server_says_of_itself() -> None:
    async with FakeTinker(max_context=77).open() as backend:
        capabilities = backend.capabilities
    assert (capabilities.name, capabilities.max_context, capabilities.time_to_live) == ("tinker", 77, True)
    assert {"cross_entropy", "ppo", "gspo", "dpo"} <= capabilities.losses
    assert capabilities.request_deadline == TinkerOptions().request_deadline


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_whole_of_open_leaves_no_thread_behind(fake: FakeTinker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the worker's thread, as users open it."""
    before = {thread.ident for thread in threading.enumerate()}

    async def hosted(_: Access) -> Traits:
        return servers.HOSTED

    monkeypatch.setattr(servers, "recognise", hosted)
    async with (
        fake.service.serving(),
        tinker.open("fake/table", api_key="tml-fake", base_url="http://fake", vocab_size=128) as backend,
    ):
        assert any(thread.name.startswith("callsheet-tinker") for thread in threading.enumerate())
        snapshot = await backend.snapshot().result()
        assert snapshot.version == 0
    left = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert not [name for name in left if "callsheet" in name]
    assert fake.service.checkpoints == {}
    assert fake.service.sessions == ["success"]


async def test_an_error_in_the_block_is_told_to_the_server() -> None:
    fake = FakeTinker()
    with pytest.raises(ZeroDivisionError):
        async with fake.open():
            raise ZeroDivisionError
    assert fake.service.sessions == ["errored"]


async def test_a_run_that_cannot_be_begun() -> None:
    fake = FakeTinker()
    fake.service.plan("create_lora_training_client", Fault(error=values.RateLimitError("too many runs")))
    with pytest.raises(TransientError, match="a run of fake/table could not be begun: too many runs; status 429"):
        async with fake.open():
            pass
    assert fake.service.sessions == ["errored"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_skyrls_server_is_recognised_by_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    async def reachable(_: Access) -> None:
        return None

    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={"name": "Tinker API Mock"})

    def asked(method: str) -> Callable[..., httpx.Response]:
        def ask(url: str, **options: Any) -> httpx.Response:
            with httpx.Client(transport=httpx.MockTransport(handler)) as client:
                return client.request(method, url, **options)

        return ask

    monkeypatch.setattr(servers, "look_up", reachable)
    monkeypatch.setattr(httpx, "get", asked("GET"))
    monkeypatch.setattr(httpx, "post", asked("POST"))
    traits = await servers.recognise(Access("http://there:1", "tml-key"))
    assert (traits.own_snapshots, traits.signed_weights, traits.expires) == (True, False, False)
    assert (traits.clips_gradients, traits.chooses_layers) == (False, False)
    assert "x-api-key" not in sent[0].headers
    traits.unload("model_1")
    assert (str(sent[1].url), sent[1].headers["x-api-key"]) == ("http://there:1/api/v1/unload_model", "tml-key")
    assert sent[1].content == b'{"model_id":"model_1"}'
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    assert await servers.recognise(Access()) is servers.HOSTED


# ---- housekeeping ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("has_one_list", [True, False])
async def test_what_lies_on_the_server(line: Line, has_one_list: bool, tmp_path: Path) -> None:
    fake = FakeTinker(line)
    directories = [tmp_path / str(index) for index in range(3)]
    async with fake.open() as backend:
        for directory in directories:
            directory.mkdir()
            await backend.save_state(directory).result()
    if not has_one_list:
        fake.service.plan("list", Fault(error=values.NotFoundError("Not Found")))
    async with fake.open_store() as store:
        found = await store.checkpoints()
        paths = [stored.path for stored in found]
        assert {(stored.kind, stored.size, stored.expires) for stored in found} == {("training", 128 * 128 * 8, None)}
        assert sorted(paths) == sorted(state.path for _, state in saved_in(tmp_path))
        assert [stored.path for stored in await store.checkpoints("run-0")] == paths
        assert await store.checkpoints("run-1") == []
        await store.set_ttl(paths[0], 3600)
        assert fake.service.checkpoints[paths[0]].ttl == 3600
        await store.delete(paths[1])
        assert paths[1] not in fake.service.checkpoints
        with pytest.raises(RequestRejected, match=r"deleting .* does not exist; status 404"):
            await store.delete(paths[1])
        with pytest.raises(RequestRejected, match="is no path of a checkpoint"):
            await store.delete("runs/7")


async def test_paths_of_samplers_are_deleted_by_their_whole_name() -> None:
    """SkyRL's server leaves the middle of a sampler's path out when it gives it, and wants it back."""
    fake = FakeTinker()
    async with fake.open(snapshot_ttl=None) as backend:
        await backend.snapshot().result()
        (path,) = fake.service.checkpoints
        fake.service.checkpoints[path] = fake.service.checkpoints[path]
    async with fake.open() as backend:
        await backend.snapshot().result()
        (path,) = fake.service.checkpoints
        async with fake.open_store() as store:
            await store.delete(path.replace("/sampler_weights", ""))
        assert fake.service.checkpoints == {}


def test_statuses_are_counted_and_nothing_more_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("httpx")
    before = logger.level
    logger.setLevel(logging.WARNING)

    def line(status: int, url: str = "https://here/api") -> None:
        logger.info('HTTP Request: %s %s "%s %d %s"', "POST", url, "HTTP/1.1", status, "-")

    try:
        with StatusCounter("https://here") as ours, StatusCounter(None) as everybodys:
            for status in (200, 429, 500, 503, 408):
                line(status)
            line(429, "https://there/api")
            logger.warning("shown")
        assert (ours.rate_limited, ours.server_errors) == (1, 2)
        assert (everybodys.rate_limited, everybodys.server_errors) == (2, 2)
        assert [record.message for record in caplog.records] == ["shown"]
        assert logger.level == logging.WARNING
        line(429)
        assert ours.rate_limited == 1
    finally:
        logger.setLevel(before)


def test_the_worker_is_one_thread() -> None:
    runs = worker_thread()
    names: list[str] = []
    for _ in range(3):
        runs.submit(lambda: names.append(threading.current_thread().name))
    runs.shutdown()
    assert len(set(names)) == 1
