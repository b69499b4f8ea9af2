"""A recipe for the tests of the command line: `python -m tests.recipes.cli_example`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Literal

import anyio
import attrs

from actors.schedule import Schedule
from recipes import cli


@attrs.frozen
class Pace:
    """How fast."""

    groups_per_step: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Groups trained by one optimizer step."""
    minibatches: int = 1
    """Parts of a step."""
    bound: Literal["hard", "soft"] = "hard"
    """Of what is bounded."""

    def __attrs_post_init__(self) -> None:
        if self.groups_per_step % self.minibatches:
            raise ValueError(f"minibatches must divide groups_per_step ({self.groups_per_step})")


@attrs.frozen
class Config:
    """Learns nothing, but is configured like a recipe."""

    do: str = "print"
    """What to try."""
    steps: int = attrs.field(default=40, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    learning_rate: float | None = None
    """Of the optimizer; None: what suits the model."""
    resume: bool = False
    """Go on with a run."""
    run_dir: Path | None = None
    """Where the run lies."""
    stop: tuple[str, ...] = ()
    """Stop strings."""
    schedule: Pace = attrs.field(factory=Pace)
    """The pace."""


class OurError(Exception):
    pass


class OurWarning(UserWarning):
    pass


OurWarning.__module__ = "engine.backends.errors"
OurError.__module__ = "engine.backends.errors"  # as if it were defined there


async def run(config: Config) -> None:
    if config.run_dir is not None:
        cli.report_errors_in(config.run_dir)
    match config.do:
        case "fail":
            raise ExceptionGroup("program failed", [ExceptionGroup("inner", [_noted(OurError("the disk is full"))])])
        case "fail with a bug":
            raise ZeroDivisionError("division by zero")
        case "fail at a value":
            Schedule(minibatches=99)
        case "fail in the block":
            async with cli.stop_on_interrupt(lambda: None):
                raise OurError("inside")
        case "warn":
            warnings.warn("gradients are not clipped", OurWarning, stacklevel=1)
            warnings.warn("an old name", UserWarning, stacklevel=1)
        case "wait":
            await _wait_for_interrupts()
        case _:
            print(config)


def _noted(error: Exception) -> Exception:
    error.add_note("in actor 'logger'")
    return error


async def _wait_for_interrupts() -> None:
    """Stops after the first interrupt if `stop_quickly` is set; otherwise needs the second."""
    stopped = anyio.Event()
    async with cli.stop_on_interrupt(stopped.set):
        print("ready", flush=True)
        await stopped.wait()
        print("asked to stop", flush=True)
        if "STUBBORN" in os.environ:
            try:
                await anyio.sleep_forever()
            finally:
                print("cleaned up", flush=True)
                if os.environ["STUBBORN"] == "very":
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep_forever()
    print("checkpoint saved", flush=True)


if __name__ == "__main__":
    cli.main(run, Config, name="example", backend=os.environ.get("BACKEND", "asyncio"))
