"""tinker-cookbook's data assembly, measured: a peer of `benchmarks.training_steps`, run by it in an interpreter of its own.

    pip install torch==2.13.0 tinker==0.25.0 tinker-cookbook==0.5.6
    python benchmarks/peers/assembly_tinker_cookbook.py WORK.npz

The last line is JSON: CPU seconds to make datums of all trajectories, and what the datums hold.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version

import numpy as np


def main() -> None:
    warnings.simplefilter("ignore")
    import tinker
    from tinker_cookbook.completers import TokensWithLogprobs
    from tinker_cookbook.rl.data_processing import trajectory_to_data
    from tinker_cookbook.rl.types import Trajectory, Transition

    work = np.load(sys.argv[1])
    members = []
    for observations, actions, logprobs in zip(
        *(work[name].reshape(-1, *work[name].shape[2:]) for name in ("observations", "actions", "logprobs")),
        strict=True,
    ):
        transitions: list[Transition] = []
        prompt: list[int] = []
        for observed, action, scores in zip(observations.tolist(), actions.tolist(), logprobs.tolist(), strict=True):
            prompt = prompt + observed
            transitions.append(
                Transition(
                    ob=tinker.ModelInput.from_ints(prompt),
                    ac=TokensWithLogprobs(tokens=action, maybe_logprobs=scores),
                    reward=0.0,
                    episode_done=False,
                )
            )
            prompt = prompt + action
        members.append(Trajectory(transitions=transitions, final_ob=tinker.ModelInput.empty()))
    advantages = work["advantages"].reshape(-1).tolist()
    began = time.process_time()
    data = [
        datum
        for member, advantage in zip(members, advantages, strict=True)
        for datum in trajectory_to_data(member, advantage)
    ]
    seconds = time.process_time() - began
    result = {
        "cpu_s": [seconds],
        "datums": len(data),
        "tokens": sum(datum.model_input.length for datum in data),
        "advantage": round(
            sum(float(datum.loss_fn_inputs["advantages"].to_numpy().sum(dtype=np.float64)) for datum in data), 2
        ),
        "versions": {name: version(name) for name in ("tinker-cookbook", "tinker", "torch")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
