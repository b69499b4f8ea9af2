"""The run of a recipe: its directory, its configuration on disk, how it goes on, and what is said of it at the end."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from recipes import cli, inspecting
from recipes.models import TINY, ModelConfig
from recipes.run_models import find_run_model
from recipes.terminal import say

if TYPE_CHECKING:
    from actors import RunResult, RunSettings

C = TypeVar("C", bound=ModelConfig)
BestIs = Literal["highest", "lowest"]

_at_least_one: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class RunConfig(ModelConfig):
    """A model, and where its run is kept."""

    seed: int = 0
    """Seed of everything drawn at random: data, sampling, initial weights."""
    run_dir: Path | None = None
    """Where the run is kept; None: runs/<recipe>-<time>."""
    resume: bool = False
    """Go on with the run in --run-dir, with its configuration."""
    checkpoint_every: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    """Steps between checkpoints."""
    keep_checkpoints: int | None = attrs.field(default=3, validator=_at_least_one)
    """How many of the newest checkpoints stay; None: all."""
    keep_every: int | None = attrs.field(default=None, validator=_at_least_one)
    """Checkpoints whose step is a multiple of this stay, too."""
    best_metric: str | None = None
    """Metric of an evaluation, as <evaluation>/<metric>, by which the best checkpoint is kept too; None: none is."""
    best_is: BestIs = "highest"
    """Which value of --best-metric is best."""
    checkpoint_ttl: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0))
    )
    """Seconds after which a server may drop a checkpoint, those of --keep-every and the last one excepted; None: never. local has no such thing."""
    mirror: str | None = None
    """Where to keep a copy of the run, brought up to date behind every checkpoint: a directory, or s3://bucket/path. `recipes.mirror` gets it back."""

    def __attrs_post_init__(self) -> None:
        if self.resume and self.run_dir is None:
            raise ValueError("resume needs --run-dir: which run is to go on?")


def defaults(config: type[C], args: Sequence[str], *, by_model: Mapping[str, Any] | None = None) -> C:
    """What the flags start from: a resumed run's own configuration, or the class's defaults.

    `by_model`: other defaults for every model but the tiny one, which speaks nothing yet and costs next to nothing. A run that begins with another run's
    weights takes over what those need.
    """
    given = _given(args)
    if "--resume" in args and "--run-dir" in given:
        path = Path(given["--run-dir"]) / "config.json"
        if path.exists():
            return _read_config(path, config)
    model = given.get("--model", TINY)
    trained = find_run_model(model)
    base, inherited = (model, {}) if trained is None else (trained.base()[0], {"model": model, **trained.inherited()})
    if base == TINY or by_model is None:
        return config(**inherited)
    return config(**{"model": model, **by_model, **inherited})


def configuration(run: Path, config: type[C]) -> C:
    """The configuration of a run that is there. Raises ValueError, naming the file, where it cannot be read or is another recipe's."""
    path = run / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): the directory of a run is wanted") from error
    try:
        return cli.structure(values, config)
    except ValueError as error:
        raise ValueError(f"{path} is of another recipe, or of another version of it: {error}") from error


def _read_config(path: Path, config: type[C]) -> C:
    """The configuration of a run. Ends the program, in one line, where it cannot be read: this comes before `cli.main` and its messages."""
    try:
        return cli.structure(json.loads(path.read_text(encoding="utf-8")), config)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: {path}: {error}") from error


def _given(args: Sequence[str]) -> dict[str, str]:
    """Flags with the value behind them, as far as the defaults depend on it."""
    found = {}
    for flag, following in itertools.pairwise([*args, ""]):
        name, equals, value = flag.partition("=")
        if name in ("--model", "--run-dir"):
            found[name] = value if equals else following
    return found


def begin(config: RunConfig, recipe: str) -> Path:
    """The run's directory, with the configuration in it. Refuses one in use before anything costs time. Raises RunDirectoryError."""
    from engine.storage.run_directory import RunDirectory

    inspecting.check(getattr(config, "inspect_tasks", ()))
    directory = config.run_dir or Path("runs") / f"{recipe}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    with RunDirectory(directory, resume=config.resume) as opened:
        trained = find_run_model(config.model)
        model = config.model if trained is None or config.resume else trained.pinned()
        opened.write_config(cli.unstructure(attrs.evolve(config, model=model, run_dir=directory, resume=False)))
    cli.report_errors_in(directory)
    return directory


def settings(config: RunConfig, directory: Path) -> RunSettings:
    """How the engine keeps this run."""
    from actors import RunSettings
    from engine.storage import Best
    from engine.storage.blobs import open_blobs

    return RunSettings(
        directory,
        resume=config.resume,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        keep_every=config.keep_every,
        best=Best(config.best_metric, config.best_is == "highest") if config.best_metric is not None else None,
        time_to_live=config.checkpoint_ttl,
        mirror=None if config.mirror is None else open_blobs(config.mirror),
    )


def tell(
    directory: Path,
    result: RunResult | None,
    module: str,
    *,
    learnt: Callable[[Path], Sequence[str]] | None = None,
) -> None:
    """Says what was learnt, writes plot and report, says where everything lies, and how a stopped run goes on.

    `result` None: it was stopped before training began. `module`: what `python -m` runs. `learnt`: the lines about the outcome; None: those of a
    reinforcement-learning run.
    """
    from engine.telemetry.record import read_run
    from engine.telemetry.report import write_report, write_reward_plot
    from recipes import summary

    if result is not None:
        lines = learnt(directory) if learnt is not None else summary.learnt(read_run(directory))
        say("\n".join(["", *lines, ""]))
        if learnt is None:
            say(f"plot      {write_reward_plot(directory)}")
        say(f"report    {write_report(directory)}")
    say(f"run       {directory}")
    if result is None or result.ending == "stopped":
        say(f"go on     python -m {module} --resume --run-dir {directory}")
