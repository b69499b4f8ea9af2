"""Environments of the `verifiers` package that are played in turns: tools, users, games. Their own rollout runs; our policy answers it.

    async with playing("my-environment", renderer, group_size=8) as groups: ...          # an installed one by its id, or a module of one's own

    run's loop     reset ─▶ prompt ─▶ policy ─▶ step(completion) ─▶ prompt ─▶ ...  ─▶ reward
                     │                             │
    verifiers' loop  harness asks ◀────────────────┴── the answer, as its client would give it         (`engine.runtime.guest_loop`)

`verifiers` calls models; here it is the rollout that calls the policy. So a rollout of theirs runs until it asks its model something, and that question is the next observation of an episode of ours. What was sampled is
what is trained: a question that goes on where the last answer ended is rendered behind the very tokens of it, never tokenised again; limits, versions, seeds and failure policies are those of every other environment.
Nothing goes over a network but what the harness itself sends to the interception server of `verifiers`, on loopback.
"""

from envs.verifiers_episodes.groups import EpisodeFailed, EpisodeGroup, EpisodeGroups, VerifiersEpisode, playing

__all__ = ["EpisodeFailed", "EpisodeGroup", "EpisodeGroups", "VerifiersEpisode", "playing"]
