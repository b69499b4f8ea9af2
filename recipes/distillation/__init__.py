"""Recipes that learn from teachers: another model, several, the same model with more in its prompt, or answers written down."""
