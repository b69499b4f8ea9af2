"""Learning from preferences: DPO, a preference model, RL against one, and the smallest example of pairwise rewards."""
