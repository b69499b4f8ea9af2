"""A backend without a model: latency distributions, seeded tokens and injected failures on anyio's clock.

For planning, tests and benchmarks. On a virtual clock (`engine.runtime.simulate`) an hour takes milliseconds.
"""

from engine.backends.simulated.backend import SimulatedBackend, SimulatedSnapshot
from engine.backends.simulated.distributions import Constant, Distribution, Empirical, Exponential, LogNormal, Uniform
from engine.backends.simulated.faults import ALWAYS, Failures, Fault, Hang
from engine.backends.simulated.model import Draw, SamplerModel, Script
from engine.backends.simulated.records import RequestLog, SampleEntry, TrainingEntry, datum_digest, prompt_digest
from engine.backends.simulated.trainer import TrainerModel

__all__ = [
    "ALWAYS",
    "Constant",
    "Distribution",
    "Draw",
    "Empirical",
    "Exponential",
    "Failures",
    "Fault",
    "Hang",
    "LogNormal",
    "RequestLog",
    "SampleEntry",
    "SamplerModel",
    "Script",
    "SimulatedBackend",
    "SimulatedSnapshot",
    "TrainerModel",
    "TrainingEntry",
    "Uniform",
    "datum_digest",
    "prompt_digest",
]
