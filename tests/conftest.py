"""Fixtures of the whole suite."""

from __future__ import annotations

import gc
from typing import Any

import hypothesis
import pytest
from trio.testing import MockClock

# A busy machine is no failure: what may take how long is for the timeout of the whole test to say.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What is loaded by now stays: a collection of garbage need not look through torch and all the rest each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Tests marked `anyio` run on asyncio and on trio; on trio the clock is virtual and jumps as soon as everything waits.

    A test that waits for time to pass belongs on trio alone: override this fixture, or use `engine.runtime.simulate`. Function-scoped, because a
    clock belongs to one run.
    """
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {}
