"""What is learnt: the contracts of environments, the one rollout loop, and environments."""
