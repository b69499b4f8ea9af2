"""Which renderer a model wants: what is known of models by their names."""

from __future__ import annotations

import re
from typing import Literal

import attrs


@attrs.frozen
class ModelInfo:
    """A model as far as its name tells."""

    organisation: str
    family: str
    size: str | None
    """As written in the name: `8B`, `30B-A3B`."""
    kind: Literal["chat", "base"]
    vision: bool
    renderer: str
    """What `get_renderer` should be given."""
    others: tuple[str, ...] = ()
    """Further renderers of the family that fit."""


# Pattern of the name behind the organisation; organisation; family; whether it sees; renderer; others that fit. The first that matches counts.
_K25 = ("_disable_thinking", "_preserve_thinking")
_RULES: tuple[tuple[str, str, str, bool, str, tuple[str, ...]], ...] = (
    (r"Qwen3-VL.*Instruct", "Qwen", "Qwen3-VL", True, "qwen3_vl_instruct", ()),
    (r"Qwen3-VL", "Qwen", "Qwen3-VL", True, "qwen3_vl", ()),
    (r"Qwen3\.8", "Qwen", "Qwen3.8", True, "qwen3_8", ("qwen3_8_medium", "qwen3_8_low", "qwen3_8_disable_thinking")),
    (r"Qwen3\.6", "Qwen", "Qwen3.6", True, "qwen3_6", ("qwen3_6_disable_thinking", "qwen3_6_preserve_thinking")),
    (r"Qwen3\.5", "Qwen", "Qwen3.5", True, "qwen3_5", ("qwen3_5_disable_thinking",)),
    (r"Qwen3.*Instruct-2507", "Qwen", "Qwen3", False, "qwen3_instruct", ()),
    (r"Qwen3", "Qwen", "Qwen3", False, "qwen3", ("qwen3_disable_thinking",)),
    (r"Qwen2\.5|Qwen2", "Qwen", "Qwen2.5", False, "qwen2_5", ()),
    (r"Llama-3\.[1-9].*|Meta-Llama-3\.[1-9].*", "meta-llama", "Llama3", False, "llama3_1", ("llama3",)),
    (r"(Meta-)?Llama-3", "meta-llama", "Llama3", False, "llama3", ()),
    (r"DeepSeek-V3", "deepseek-ai", "DeepSeek-V3", False, "deepseekv3", ("deepseekv3_thinking",)),
    (r"Kimi-K2\.6", "moonshotai", "Kimi-K2.6", True, "kimi_k26", tuple("kimi_k26" + end for end in _K25)),
    (r"Kimi-K2\.5", "moonshotai", "Kimi-K2.5", True, "kimi_k25", tuple("kimi_k25" + end for end in _K25)),
    (r"Kimi-K2-Instruct", "moonshotai", "Kimi-K2", False, "kimi_k2_instruct", ()),
    (r"Kimi-K2", "moonshotai", "Kimi-K2", False, "kimi_k2", ("kimi_k2_preserve_thinking",)),
    (
        r".*Nemotron-3.*Ultra",
        "nvidia",
        "Nemotron3",
        False,
        "nemotron3_ultra",
        ("nemotron3_ultra_medium", "nemotron3_ultra_disable_thinking"),
    ),
    (
        r".*Nemotron-3",
        "nvidia",
        "Nemotron3",
        False,
        "nemotron3",
        ("nemotron3_low", "nemotron3_disable_thinking", "nemotron3_preserve_thinking"),
    ),
    (r"gpt-oss", "openai", "gpt-oss", False, "gpt_oss", ("gpt_oss_low", "gpt_oss_high", "gpt_oss_no_sysprompt")),
    (r"GLM-5", "zai-org", "GLM-5", False, "glm5", ("glm5_high", "glm5_low", "glm5_preserve_thinking")),
    (r"GLM-4\.7", "zai-org", "GLM-4.7", False, "glm4_7", ("glm4_7_disable_thinking", "glm4_7_preserve_thinking")),
    (r"GLM-4\.[56]", "zai-org", "GLM-4.5", False, "glm4_5", ("glm4_5_disable_thinking",)),
    (r"SmolLM2.*Instruct", "HuggingFaceTB", "SmolLM2", False, "smollm2", ("chatml",)),
    (r"SmolLM2", "HuggingFaceTB", "SmolLM2", False, "role_colon", ()),
)
# Families whose plain name is a base model: a chat model of theirs says Instruct.
_INSTRUCT_SAID = ("Qwen2.5", "Llama3", "SmolLM2")
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?[BM](?:-A\d+(?:\.\d+)?B)?)(?![A-Za-z])", re.IGNORECASE)
_registered: dict[str, ModelInfo] = {}


def register_model(name: str, info: ModelInfo) -> None:
    """Says what a model of one's own wants; its name counts as it is, before all rules."""
    _registered[name] = info


def model_info(name: str) -> ModelInfo:
    """What is known of the model `organisation/name` (or a path that ends in its name).

    Raises KeyError for a model no rule knows; its own chat template (`template`) works for most of those.
    """
    if name in _registered:
        return _registered[name]
    short = name.rstrip("/").rpartition("/")[2]
    for pattern, organisation, family, vision, renderer, others in _RULES:
        if re.match(pattern, short, re.IGNORECASE) is None:
            continue
        size = _SIZE.search(short)
        kind: Literal["chat", "base"] = "base" if _is_base(short, family) else "chat"
        found = ModelInfo(organisation, family, size[1] if size else None, kind, vision, renderer, others)
        return found if kind == "chat" else attrs.evolve(found, renderer="role_colon", others=())
    raise KeyError(
        f"no rule for the model {name!r}: name a renderer yourself ('template' takes the model's own chat template), or register_model()"
    )


def _is_base(short: str, family: str) -> bool:
    if re.search(r"(?<![A-Za-z])(base|pt)(?![A-Za-z])", short, re.IGNORECASE):
        return True
    return family in _INSTRUCT_SAID and re.search(r"instruct|chat", short, re.IGNORECASE) is None


_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct"),
    ("qwen3_8", "Qwen/Qwen3.8-27B"),
    ("qwen3_6", "Qwen/Qwen3.6-27B"),
    ("qwen3_5", "Qwen/Qwen3.5-4B"),
    ("qwen3", "Qwen/Qwen3-8B"),
    ("qwen2_5", "Qwen/Qwen2.5-7B-Instruct"),
    ("llama3", "meta-llama/Llama-3.1-8B-Instruct"),
    ("deepseekv3", "deepseek-ai/DeepSeek-V3.1"),
    ("kimi_k26", "moonshotai/Kimi-K2.6"),
    ("kimi_k25", "moonshotai/Kimi-K2.5"),
    ("kimi_k2", "moonshotai/Kimi-K2-Thinking"),
    ("nemotron3", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    ("gpt_oss", "openai/gpt-oss-20b"),
    ("glm4_5", "zai-org/GLM-4.6"),
    ("glm4_7", "zai-org/GLM-4.7"),
    ("glm", "zai-org/GLM-5"),
    ("", "HuggingFaceTB/SmolLM2-135M-Instruct"),
)


def example_model(renderer: str) -> str:
    """A model whose tokenizer suits a renderer."""
    return next(model for beginning, model in _EXAMPLES if renderer.startswith(beginning))
