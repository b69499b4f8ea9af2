"""Completers: messages in, a message out. What judges, answerers of questions, teachers that write and chat servers are to those who ask them.

messages ──Completer──> Reply

PolicyCompleter      renders, samples and parses on any policy of this engine
ScriptedCompleter    answers from a function: what tests and offline runs ask
chat_api.open(...)   asks a server with OpenAI's chat API
"""

from engine.completion.policy import PolicyCompleter, SnapshotPolicy
from engine.completion.ports import Completer, Reply, Samples, StreamingCompleter
from engine.completion.scripted import ScriptedCompleter

__all__ = [
    "Completer",
    "PolicyCompleter",
    "Reply",
    "Samples",
    "ScriptedCompleter",
    "SnapshotPolicy",
    "StreamingCompleter",
]
