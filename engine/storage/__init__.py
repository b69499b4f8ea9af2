"""The run directory, checkpoints, and values on disk."""

from engine.storage.checkpoints import CheckpointStore, StoredCheckpoint, UnusableCheckpoint
from engine.storage.encoding import read_value, write_value
from engine.storage.run_directory import RunDirectory, RunDirectoryError

__all__ = [
    "CheckpointStore",
    "RunDirectory",
    "RunDirectoryError",
    "StoredCheckpoint",
    "UnusableCheckpoint",
    "read_value",
    "write_value",
]
