"""Imported by worker processes when they start: loads reasoning-gym, so that no answer pays for that out of its budget."""

from envs.reasoning_tasks.work import warm_up

warm_up()
