"""Imported by worker processes when they start (`envs.grading.math_grader.PRELOAD`): loads sympy and the grammars, so that no answer pays for that out of its budget."""

from envs.grading.mathematics.symbolic import warm_up

warm_up()
