"""Data sets of the Hugging Face hub that are known by a short name: where they lie, and what their rows are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

Kind = Literal["conversations", "problems", "comparisons", "programs", "questions"]


@attrs.frozen
class KnownSet:
    """A data set of the hub."""

    name: str
    kind: Kind
    repository: str
    subsets: tuple[str, ...] = ()
    """Configurations, all of which are loaded, one behind the other; empty: the default one."""
    splits: Mapping[str, str] = attrs.field(factory=dict)
    """What the hub calls a split, where it is not "train" or "test"."""
    has_test: bool = True
    """Whether there is a held-out split under the name "test" or one of `splits`."""


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

_SETS = (
    KnownSet("no_robots", "conversations", "HuggingFaceH4/no_robots"),
    KnownSet("tulu3", "conversations", "allenai/tulu-3-sft-mixture", has_test=False),
    KnownSet("gsm8k", "problems", "openai/gsm8k", ("main",)),
    KnownSet("math", "problems", "EleutherAI/hendrycks_math", MATH_SUBJECTS),
    KnownSet("math500", "problems", "HuggingFaceH4/MATH-500", splits={"train": "test"}),
    KnownSet("polaris", "problems", "POLARIS-Project/Polaris-Dataset-53K", has_test=False),
    KnownSet("deepmath", "problems", "zwhe99/DeepMath-103K", has_test=False),
    KnownSet("hh", "comparisons", "Anthropic/hh-rlhf"),
    KnownSet("helpsteer2", "comparisons", "nvidia/HelpSteer2", splits={"test": "validation"}),
    KnownSet("helpsteer3", "comparisons", "nvidia/HelpSteer3", ("preference",), splits={"test": "validation"}),
    KnownSet(
        "ultrafeedback",
        "comparisons",
        "HuggingFaceH4/ultrafeedback_binarized",
        splits={"train": "train_prefs", "test": "test_prefs"},
    ),
    KnownSet("humaneval", "programs", "openai/openai_humaneval", splits={"train": "test"}),
    KnownSet("mbpp", "programs", "google-research-datasets/mbpp", ("full",)),
    KnownSet("mbpp_sanitized", "programs", "google-research-datasets/mbpp", ("sanitized",)),
    KnownSet("livecodebench", "programs", "lighteval/code_generation_lite", splits={"train": "test"}),
    KnownSet(
        "deepcoder",
        "programs",
        "agentica-org/DeepCoder-Preview-Dataset",
        ("primeintellect", "taco", "lcbv5"),
        has_test=False,
    ),
    KnownSet("hotpotqa", "questions", "hotpotqa/hotpot_qa", ("distractor",), splits={"test": "validation"}),
    KnownSet("2wikimultihopqa", "questions", "corag/multihopqa", ("2wikimultihopqa",), splits={"test": "validation"}),
    KnownSet("musique", "questions", "corag/multihopqa", ("musique",), splits={"test": "validation"}),
    KnownSet("bamboogle", "questions", "corag/multihopqa", ("bamboogle",), splits={"train": "test"}),
    KnownSet("nq", "questions", "google-research-datasets/nq_open", splits={"test": "validation"}),
    KnownSet("triviaqa", "questions", "mandarjoshi/trivia_qa", ("rc.nocontext",), splits={"test": "validation"}),
    KnownSet("popqa", "questions", "akariasai/PopQA", splits={"train": "test"}),
    KnownSet("nq_hotpotqa", "questions", "PeterJinGo/nq_hotpotqa_train"),
)

KNOWN_SETS: Mapping[str, KnownSet] = {known.name: known for known in _SETS}
"""By short name."""


def find_known(name: str) -> KnownSet | None:
    """A known set by its short name or its name on the hub."""
    return KNOWN_SETS.get(name) or next((known for known in _SETS if known.repository == name), None)
