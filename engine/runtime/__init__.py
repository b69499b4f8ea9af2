"""The actor engine: channels, programs of actors, the staleness gate, worker processes, the virtual clock. anyio and attrs alone."""

from engine.runtime.channels import Channel, ChannelStatistics, ConsumerFinished, Receiver, Sender
from engine.runtime.gate import Bound, GateClosed, GateState, GateStatistics, StalenessGate, Ticket
from engine.runtime.instrumentation import NullTracer, Tracer
from engine.runtime.jobs import BudgetExceeded, JobError, JobFailed, WorkerDied
from engine.runtime.offload import offload
from engine.runtime.processes import WorkerPool
from engine.runtime.program import ActorsFailed, Program, Restarts
from engine.runtime.requests import Ask, Asker, Inbox, NoReply
from engine.runtime.seeds import derive_seed
from engine.runtime.simulation import Deadlock, SimulationReport, simulate
from engine.runtime.turns import TurnLimit

__all__ = [
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
