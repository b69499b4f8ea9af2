"""SkyRL's Tinker API server on this machine's CPU. Run by `server.py`, in the server's own environment; imports nothing of this project.

    python skyrl_app.py --port 8000 --base-model DIRECTORY --backend jax ...      its API, and below it
    python skyrl_app.py --engine ...                                            its engine, a child process

Three things stand between SkyRL 0.4.0 and a plain `python`: it starts its engine through `uv`, wants Python 3.12, and imports torch and peft for a few
names that its JAX backend on text hardly uses. And it speaks the dialect of the SDK's 0.25 line; `teach_newer_sdk` adds what 0.38 asks for.
"""

import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
import types
import typing
from pathlib import Path

ENGINE = "--engine"


def make_ready() -> None:
    """Before anything of SkyRL is imported."""
    os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    if sys.version_info < (3, 12):
        import typing_extensions

        typing.TypedDict = typing_extensions.TypedDict  # what pydantic insists on before 3.12
    torch = _stand_in("torch", __version__="0.0.0", Tensor=type("Tensor", (), {}), dtype=type("dtype", (), {}))
    torch.cat = lambda *_: None
    _stand_in("peft", LoraConfig=AdapterConfig)


def _stand_in(name: str, **content: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    sys.modules[name] = module
    return module


class AdapterConfig:
    """The file that lies beside saved adapters."""

    def __init__(self, **settings: object) -> None:
        self.settings = settings

    def save_pretrained(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        content = {"peft_type": "LORA", **self.settings}
        Path(directory, "adapter_config.json").write_text(json.dumps(content, default=str), encoding="utf-8")


def end_with_parent() -> None:
    """Ends this process and its engine when whoever started them is gone, however it went."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run_engine() -> None:
    import runpy

    sys.argv = ["skyrl.tinker.engine", *sys.argv[2:]]
    runpy.run_module("skyrl.tinker.engine", run_name="__main__")


def run_api() -> None:
    import argparse

    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig, add_model, config_to_argv

    parser = argparse.ArgumentParser()
    add_model(parser, EngineConfig)
    parser.add_argument("--port", type=int, required=True)
    given = vars(parser.parse_args())
    port = given.pop("port")
    api.app.state.engine_config = EngineConfig.model_validate(given)
    here = str(Path(__file__).resolve())
    api._build_uv_run_cmd_engine = lambda _, config: [sys.executable, here, ENGINE, *config_to_argv(config)]
    teach_newer_sdk(api)
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=75)


def teach_newer_sdk(api: typing.Any) -> None:
    """Endpoints that the SDK's 0.38 line calls and SkyRL 0.4.0 has not, or answers too briefly. They stand before those of the same path."""
    from fastapi import Depends, Request, Response

    app = api.app
    database = Depends(api.get_session)
    known = len(app.router.routes)

    @app.post("/api/v1/client/dynamic_config")
    async def dynamic_config() -> dict[str, object]:
        return {"sample_cancel_enabled": False}

    @app.post("/api/v1/sessions/{session_id}/finish")
    async def finish(session_id: str) -> Response:
        return Response(status_code=204)

    @app.post("/api/v1/asample")
    async def asample(
        request: api.SampleRequest, req: Request, session: api.AsyncSession = database
    ) -> dict[str, object]:
        promise = await api.asample(request, req, session)
        ids = [f"{promise.request_id}-{index}" for index in range(request.num_samples)]
        return {**promise.model_dump(), "sample_sequence_ids": ids}

    @app.post("/api/v1/load_weights")
    async def load_weights(
        body: dict[str, typing.Any], req: Request, session: api.AsyncSession = database
    ) -> dict[str, object]:
        if body.get("model_id") is None:
            body["model_id"] = f"{body['session_id']}:train:{body['model_seq_id']}"
            await add_model_for(api, session, body)
        return (await api.load_weights(api.LoadWeightsRequest.model_validate(body), req, session)).model_dump()

    @app.delete("/api/v1/training_runs/{run}/checkpoints/{path:path}", status_code=204)
    async def delete(request: Request, run: str, path: str, session: api.AsyncSession = database) -> None:
        await api.delete_checkpoint(request, run, path, None, session)

    @app.get("/api/v1/models/{run}/checkpoints")
    @app.get("/api/v1/training_runs/{run}/checkpoints")
    async def checkpoints(run: str, session: api.AsyncSession = database) -> object:
        return await api.list_checkpoints(run, session)

    added = app.router.routes[known:]
    app.router.routes[:] = [*added, *app.router.routes[:known]]


async def add_model_for(api: typing.Any, session: typing.Any, body: dict[str, typing.Any]) -> None:
    """The model that a load of the newer line implies, under the name which that line gives it."""
    from skyrl.tinker import types as values

    source = values.TinkerPath.parse(body["path"])
    if source is None:
        raise api.HTTPException(status_code=400, detail=f"{body['path']} is no path of a checkpoint")
    model = await api.get_model(session, source.primary_id)
    settings = values.LoraConfig.model_validate({**model.lora_config, "seed": 0})
    request_id = await api.create_future(
        session=session,
        request_type=values.RequestType.CREATE_MODEL,
        model_id=body["model_id"],
        request_data=values.CreateModelInput(lora_config=settings),
    )
    session.add(
        api.ModelDB(
            model_id=body["model_id"],
            base_model=model.base_model,
            lora_config=settings.model_dump(),
            status="created",
            request_id=request_id,
            session_id=body["session_id"],
        )
    )
    await session.commit()


if __name__ == "__main__":
    make_ready()
    if sys.argv[1:2] == [ENGINE]:
        run_engine()
    else:
        end_with_parent()
        run_api()
