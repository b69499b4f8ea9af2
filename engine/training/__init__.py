"""What is optimised, as pure functions on arrays: no concurrency, no backend, no torch.

    trajectories --advantages--> numbers --assembly--> datums --kl, corrections, normalization--> datums --losses (or custom)--> gradients
    examples --supervised--> datums        pairs --preference--> datums        steps --schedules--> learning rates        results --metrics--> figures

Each estimator is one small function with its source; `ADVANTAGES`, `LOSSES` and `CORRECTIONS` have them by name, and a function of your own goes
wherever a name does. `docs/estimators.md` has the formulas and when to use which.
"""
