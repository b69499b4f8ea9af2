"""tinker-cookbook's sympy grader on the pairs of `benchmarks.grading`; runs in an environment of its own.

Gets the name of a file with pairs (JSON: [reference, answer, equal]) and prints one JSON line: seconds, CPU seconds, wrong verdicts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Grades every pair once, after one that loads what is loaded late."""
    from tinker_cookbook.recipes.math_rl.math_grading import grade_answer  # type: ignore[import-not-found, unused-ignore]

    pairs: list[tuple[str, str, bool]] = json.loads(Path(sys.argv[1]).read_text())
    grade_answer("\\frac{2}{4}+x", "x+\\frac{1}{2}")
    missed, wrong, began, cpu = 0, 0, time.perf_counter(), time.process_time()
    for reference, answer, equal in pairs:
        found = grade_answer(answer, reference)
        missed += equal and not found
        wrong += found and not equal
    result: dict[str, Any] = {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "false_negatives": missed,
        "false_positives": wrong,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
