"""Programming problems, graded by running the answers in a sandbox."""

from envs.code.grading import JUDGING, CodeGrader, GradingSettings, TestResult, Verdict
from envs.code.problem import AssertionTest, CallTest, CodeProblem, OutputTest, Test

__all__ = [
    "JUDGING",
    "AssertionTest",
    "CallTest",
    "CodeGrader",
    "CodeProblem",
    "GradingSettings",
    "OutputTest",
    "Test",
    "TestResult",
    "Verdict",
]
