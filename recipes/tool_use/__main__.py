"""`python -m recipes.tool_use`."""

from __future__ import annotations

import sys

from recipes import cli, runs
from recipes.tool_use.calculator import FOR_REAL_MODELS, Config, run

if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS), name="tool_use")
