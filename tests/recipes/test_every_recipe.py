"""What all recipes promise: help without loading anything heavy, a configuration that survives config.json, a name in the README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from recipes import cli

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "recipes").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
HEAVY = (
    *("torch", "transformers", "peft", "datasets", "pyarrow", "sympy", "httpx"),
    *("chromadb", "verifiers", "inspect_ai", "textarena", "reasoning_gym"),
)

ASK = """
import contextlib, io, json, sys
from importlib import import_module
from recipes.flags import parse

heavy, names = json.loads(sys.argv[1])
found = {}
for name in names:
    module, said = import_module(name), io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            parse(module.Config, ["--help"], name)
        except SystemExit as end:
            assert not end.code
    found[name] = [len(said.getvalue()), sorted(set(heavy) & set(sys.modules))]
print(json.dumps(found))
"""


def test_there_are_recipes() -> None:
    assert len(RECIPES) > 10
    assert "recipes.rl_loop" in RECIPES


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps([HEAVY, RECIPES])],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == RECIPES
    assert {name: heavy for name, (_, heavy) in found.items() if heavy} == {}
    assert all(length > 200 for length, _ in found.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_survives_being_written(name: str) -> None:
    kind = import_module(name).Config
    try:
        config = kind()
    except (TypeError, ValueError):  # it needs to be told something
        return
    assert cli.structure(json.loads(json.dumps(cli.unstructure(config))), kind) == config


def test_the_readme_names_every_recipe() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in RECIPES:
        short = name.removeprefix("recipes.")
        folder = short.rpartition(".")[0]
        assert f"`{short}`" in readme or (folder and f"`{folder}.…`" in readme), f"README.md does not name {short}"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
    for page in pages:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
