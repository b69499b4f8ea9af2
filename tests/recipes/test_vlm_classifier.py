"""Image classification on a simulated model, and the refusal of a backend that takes no images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from recipes import run
from recipes.embedding import simulated_model

SMALL: dict[str, Any] = {"renderer": "qwen3_vl_instruct", "model": "simulated", "steps": 2, "batch_size": 2}


@pytest.mark.parametrize("method", ["supervised", "rl"])
def test_both_methods_on_a_simulated_model(method: str, tmp_path: Path) -> None:
    async def program() -> Any:
        given = {**SMALL, "method": method, "group_size": 2, "schedule": {"groups_per_step": 2}}
        return await run("vlm_classifier", {**given, "run_dir": str(tmp_path / "run")}, manifest="test")

    assert anyio.run(program).version == 2


def test_a_backend_without_images_is_refused(tmp_path: Path) -> None:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def blind(*args: Any, **options: Any) -> Any:
        async with simulated_model(*args, **options) as opened:
            opened.backend.capabilities = attrs.evolve(opened.backend.capabilities, images=False)  # type: ignore[misc]
            yield opened

    async def program() -> Any:
        given = {**SMALL, "run_dir": str(tmp_path / "run")}
        return await run("vlm_classifier", given, manifest="test", ports={"open_model": blind})

    with pytest.raises(ValueError, match="takes no images; --backend tinker does"):
        anyio.run(program)
