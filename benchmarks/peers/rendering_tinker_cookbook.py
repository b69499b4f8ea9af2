"""tinker-cookbook's renderers on the work of `benchmarks.rendering`; runs in an environment of its own.

Gets one JSON argument (renderer, tokenizer file, conversations) and prints one JSON line of CPU seconds.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

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
NAMES = {"qwen3_8": "qwen3_8_xhigh_reasoning", "gpt_oss": "gpt_oss_medium_reasoning", "glm": "glm5_3"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text(draw: random.Random, words: int) -> str:
    said = []
    for _ in range(words):
        word = "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3)))
        said.append(word + draw.choices(("", ",", ".", "\n\n"), (20, 2, 2, 1))[0])
    return " ".join(said)


def seconds(work: Callable[[], object], least: float = 0.5) -> float:
    work()
    calls, start = 0, time.process_time()
    while time.process_time() - start < least:
        work()
        calls += 1
    return (time.process_time() - start) / calls


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import transformers
    from tinker_cookbook import renderers

    work: dict[str, Any] = json.loads(sys.argv[1])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=work["tokenizer"])
    tokenizer.chat_template = CHATML
    renderer = renderers.get_renderer(NAMES.get(work["renderer"], work["renderer"]), tokenizer)
    chats = work["conversations"]
    plain = ["".join(message["content"] for message in chat) for chat in chats]
    every = renderers.TrainOnWhat.ALL_ASSISTANT_MESSAGES
    last = renderers.TrainOnWhat.LAST_ASSISTANT_MESSAGE
    count = len(chats)
    found = {
        "tokens": renderer.build_generation_prompt(chats[0]).length,
        "encode_s": seconds(lambda: [tokenizer.encode(said, add_special_tokens=False) for said in plain]) / count,
        "prompt_s": seconds(lambda: [renderer.build_generation_prompt(chat[:-1]) for chat in chats]) / count,
        "last_s": seconds(lambda: [renderer.build_supervised_example(chat, last) for chat in chats]) / count,
        "supervised_s": seconds(lambda: [renderer.build_supervised_examples(chat, every) for chat in chats]) / count,
        "template_s": seconds(
            lambda: [tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True) for chat in chats]
        )
        / count,
    }
    draw = random.Random(1)
    stop = renderer.get_stop_sequences()[0]
    for turns in (8, 20):
        said = [text(draw, 60) for _ in range(2 * turns)]
        ends = [stop] if isinstance(stop, int) else tokenizer.encode(stop, add_special_tokens=False)
        sampled = [tokenizer.encode(said[2 * n + 1], add_special_tokens=False) + ends for n in range(turns)]

        def episode(turns: int = turns, said: list[str] = said, sampled: list[list[int]] = sampled) -> None:
            messages = [{"role": "user", "content": said[0]}]
            renderer.build_generation_prompt(messages)
            for n in range(1, turns):
                message, _ = renderer.parse_response(sampled[n - 1])
                messages += [message, {"role": "user", "content": said[2 * n]}]
                renderer.build_generation_prompt(messages)

        found[f"step{turns}_s"] = seconds(episode) / turns
    print(json.dumps(found))


if __name__ == "__main__":
    main()
