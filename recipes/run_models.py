"""A model out of a run: the run's own base model, with the weights of one of its checkpoints.

    --model runs/chat_sl-20260101-120000            its newest checkpoint
    --model runs/chat_sl-20260101-120000@best       its best one (--best-metric of that run)
    --model runs/chat_sl-20260101-120000@40         that of step 40

The base model, the LoRA rank and the chat format are that run's. Where the run began with another run's weights, the base is what that one began with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from engine.storage import StoredCheckpoint
    from engine.storage.checkpoints import Which

INHERITED = ("lora_rank", "dtype", "renderer")
"""Settings that a run which goes on from another one takes over."""


@attrs.frozen
class RunModel:
    """A run whose weights are to be used."""

    run: Path
    which: Which
    settings: dict[str, Any]
    """The run's config.json."""

    def base(self) -> tuple[str, Path]:
        """The model beneath, by name or path, and the directory of the run that made it."""
        model = str(self.settings["model"])
        below = find_run_model(model)
        return below.base() if below is not None else (model, self.run)

    def checkpoint(self) -> StoredCheckpoint:
        """The checkpoint meant. Raises RunDirectoryError, naming those there are, where there is no such one."""
        from engine.storage import select_checkpoint

        return select_checkpoint(self.run, self.which)

    def pinned(self) -> str:
        """The same checkpoint by its step and whole path, so that it stays the same one."""
        return f"{self.run.resolve()}@{self.checkpoint().step}"

    def inherited(self) -> dict[str, Any]:
        """What a run that begins with these weights takes over, as far as the run says it."""
        return {name: self.settings[name] for name in INHERITED if name in self.settings}


def find_run_model(model: str) -> RunModel | None:
    """A run by its directory, perhaps with `@latest`, `@best` or `@<step>` behind it; None where `model` names no run."""
    for path, which in ((model, "latest"), model.rpartition("@")[::2]):
        run = Path(path).expanduser()
        if path and (run / "config.json").is_file() and not (run / "model.safetensors").exists():
            settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
            if isinstance(settings, dict) and "model" in settings and "run_dir" in settings:
                return RunModel(run, _which(model, which), settings)
    return None


def _which(model: str, said: str) -> Which:
    if said in ("latest", "best"):
        return said  # type: ignore[return-value]  # one of the two words
    if said.isdecimal():
        return int(said)
    raise ValueError(f"{model}: behind the @ of a run stands latest, best or a step, not {said!r}")
