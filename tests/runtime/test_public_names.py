"""What `engine.runtime` offers, and what it costs to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import engine.runtime
import engine.runtime.testing

ROOT = Path(__file__).parents[2]


def test_the_public_names() -> None:
    assert engine.runtime.__all__ == [
        "ActorsFailed",
        "Ask",
        "Asker",
        "Bound",
        "BudgetExceeded",
        "Channel",
        "ChannelStatistics",
        "ConsumerFinished",
        "Deadlock",
        "GateClosed",
        "GateState",
        "GateStatistics",
        "Inbox",
        "JobError",
        "JobFailed",
        "NoReply",
        "NullTracer",
        "Program",
        "Receiver",
        "Restarts",
        "Sender",
        "SimulationReport",
        "StalenessGate",
        "Ticket",
        "Tracer",
        "TurnLimit",
        "WorkerDied",
        "WorkerPool",
        "derive_seed",
        "offload",
        "simulate",
    ]
    assert engine.runtime.testing.__all__ == [
        "Deadlock",
        "SimulationReport",
        "every_cancellation",
        "schedules",
        "simulate",
    ]
    for module in (engine.runtime, engine.runtime.testing):
        assert all(hasattr(module, name) for name in module.__all__)


def test_importing_it_loads_neither_trio_nor_numpy() -> None:
    """anyio and attrs alone; trio only where something is simulated."""
    program = "import sys, engine.runtime, engine.runtime.testing; print([name for name in ('trio', 'numpy', 'torch', 'rich') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
