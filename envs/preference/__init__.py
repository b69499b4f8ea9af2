"""Preferences between answers: models that compare, tournaments inside a group, win rates."""

from __future__ import annotations

from envs.preference.agreement import Agreement
from envs.preference.comparing import ComparisonFailed, FunctionPreferenceModel, PreferenceModel, better_by, shorter
from envs.preference.judged import JudgePreferenceModel, judge_question
from envs.preference.labels import (
    ComparisonFormat,
    LabelPreferenceModel,
    ToLabels,
    label_examples,
    worded,
    worded_briefly,
)
from envs.preference.tournament import Tournament, TournamentGroup, TournamentGroups, TournamentSettings
from envs.preference.win_rate import Questions, WinRate

__all__ = [
    "Agreement",
    "ComparisonFailed",
    "ComparisonFormat",
    "FunctionPreferenceModel",
    "JudgePreferenceModel",
    "LabelPreferenceModel",
    "PreferenceModel",
    "Questions",
    "ToLabels",
    "Tournament",
    "TournamentGroup",
    "TournamentGroups",
    "TournamentSettings",
    "WinRate",
    "better_by",
    "judge_question",
    "label_examples",
    "shorter",
    "worded",
    "worded_briefly",
]
