"""Copies of runs: bring one up to date by hand, or get one back on another machine.

python -m recipes.rl_loop --mirror s3://bucket/mine                       # kept up to date while it runs
python -m recipes.mirror --push runs/mine --at s3://bucket/mine           # by hand
python -m recipes.mirror --pull runs/mine --at s3://bucket/mine           # on the other machine, then:
python -m recipes.rl_loop --resume --run-dir runs/mine
"""

from __future__ import annotations

from pathlib import Path

import attrs

from recipes import cli
from recipes.terminal import say


@attrs.frozen(kw_only=True)
class Config:
    """Brings a copy of a run up to date, or gets a run back from its copy."""

    at: str
    """Where the copy is: a directory, s3://bucket/path, or any other address that fsspec knows."""
    push: Path | None = None
    """The run directory to be copied there."""
    pull: Path | None = None
    """A new directory for the run that is there."""

    def __attrs_post_init__(self) -> None:
        if (self.push is None) == (self.pull is None):
            raise ValueError("either --push or --pull is wanted")


def run(config: Config) -> None:
    """Copies."""
    from engine.storage.blobs import open_blobs
    from engine.storage.mirror import pull_run, push_run

    blobs = open_blobs(config.at)
    if config.push is not None:
        pushed = push_run(config.push, blobs)
        say(
            f"{config.push} is at {config.at}: {pushed.files} files, {pushed.sent} of them sent ({pushed.bytes / 1e6:.1f} MB)"
        )
    elif config.pull is not None:
        say(f"{pull_run(blobs, config.pull)} files written; go on with: --resume --run-dir {config.pull}")


if __name__ == "__main__":
    cli.main(run, Config)
