"""Reinforcement learning in games: alone with hints, with a model that answers, against oneself and against others."""
