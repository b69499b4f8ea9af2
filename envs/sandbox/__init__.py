"""Programs that nobody wrote for us, run where they can do no harm: one port, and its adapters.

local            on this machine, in namespaces (Linux)
sandbox_fusion   on a SandboxFusion server, over HTTP
scripted         outcomes given in advance, for tests
"""

from envs.sandbox.port import (
    ASPECTS,
    Aspect,
    Ending,
    Isolation,
    IsolationUnavailable,
    Limits,
    RunOutcome,
    RunRequest,
    Sandbox,
    SandboxError,
    SandboxUnavailable,
    Usage,
)

__all__ = [
    "ASPECTS",
    "Aspect",
    "Ending",
    "Isolation",
    "IsolationUnavailable",
    "Limits",
    "RunOutcome",
    "RunRequest",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "Usage",
]
