"""Recipes: each chooses and wires, and has no logic of its own. Run one with `python -m recipes.<name>`."""
