"""The run directory, checkpoints, and values on disk."""

from engine.storage.checkpoints import (
    CheckpointStore,
    StoredCheckpoint,
    UnusableCheckpoint,
    best_of,
    list_checkpoints,
    select_checkpoint,
)
from engine.storage.encoding import read_value, write_value
from engine.storage.keeping import Best, Keeping
from engine.storage.run_directory import RunDirectory, RunDirectoryError

__all__ = [
    "Best",
    "CheckpointStore",
    "Keeping",
    "RunDirectory",
    "RunDirectoryError",
    "StoredCheckpoint",
    "UnusableCheckpoint",
    "best_of",
    "list_checkpoints",
    "read_value",
    "select_checkpoint",
    "write_value",
]
