"""Trained weights as others load them: LoRA adapters in PEFT's format, or a whole Hugging Face model.

Importing this module is cheap; `export` loads torch and blocks.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from engine.backends.errors import BackendError, UnusableState
from engine.backends.local.models import DTYPES, in_one_piece, load_module, quiet_transformers, require_torch

if TYPE_CHECKING:
    from engine.backends.local.states import Saved

Form = Literal["peft", "merged"]
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates",
)


@attrs.frozen
class Exported:
    """What was written."""

    directory: Path
    form: Form
    version: int
    """Optimizer steps behind the weights."""
    parameters: int
    """Numbers in the file: the adapters', or the whole model's."""
    chat_template: bool
    """Whether the model's chat template came along."""


def export(state: Path, model: str | Path, out: Path, *, form: Form = "merged", dtype: str | None = None) -> Exported:
    """Writes the weights of a saved state of this backend into the new directory `out`, in one piece or not at all.

    Args:
        state: what `save_state` or `save_snapshot` wrote; of a run's checkpoint that is `<step>/trainer`.
        model: the model the backend was opened with, by name or path.
        form: "peft": the LoRA adapters, for `peft.PeftModel.from_pretrained` on that model; "merged": a model of its own, the adapters added to its weights,
            for `transformers.AutoModelForCausalLM.from_pretrained`. Tokenizer and chat template come along.
        dtype: of a merged model's numbers, "float32" or "bfloat16"; None: that of the run. Adapters are float32, as they were trained.

    Raises:
        BackendError: in one line: `out` exists, all weights were trained and adapters are asked for, the model cannot be loaded. UnusableState: the saved state is
        damaged or of another model.
    """
    require_torch()
    import torch

    from engine.backends.local.assembly import prepare
    from engine.backends.local.states import read_any

    if out.exists():
        raise BackendError(f"{out} exists already: give the name of a new directory")
    saved = read_any(state, ("training state", "snapshot"))
    try:
        rank, alpha, trained_in = (saved.details[name] for name in ("lora_rank", "lora_alpha", "dtype"))
    except KeyError as error:
        raise UnusableState(f"{state} does not say its {error.args[0]}: it was written by an older version") from None
    if form == "peft" and rank is None:
        raise BackendError(f"{state} holds all weights of the model, and no adapters: export it as a merged model")
    if dtype is not None and dtype not in DTYPES:
        raise BackendError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    module, source = load_module(model, trained_in)
    prepared = prepare(module, lora_rank=rank, lora_alpha=alpha, seed=0)
    if saved.model != prepared.mark:
        raise UnusableState(
            f"{state} is of another model than {model} (it says {saved.model}, that one is {prepared.mark})"
        )
    with torch.no_grad():
        whole = prepared.module.float()  # so that what was trained in float32 is not rounded before it is merged
        _put(saved, whole, prepared.names, state)
        with in_one_piece(out) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            quiet_transformers()
            written = _save(whole, form, partial, dtype or trained_in, source)
            template = _copy_tokenizer(source, partial)
    return Exported(out, form, saved.version, written, template)


def _put(saved: Saved, module: Any, names: Mapping[str, str], state: Path) -> None:
    parameters = dict(module.named_parameters())
    weights = saved.files.get("weights", {})
    missing = [
        name for name in names if name not in weights and (".lora_" in name or saved.details["lora_rank"] is None)
    ]
    if missing:
        raise UnusableState(f"{state} is incomplete: it lacks {missing[0]}")
    for name, tensor in weights.items():
        parameters[names[name]].copy_(tensor)


def _save(module: Any, form: Form, partial: Path, dtype: str, source: str | Path) -> int:
    import torch

    if form == "peft":
        # The adapters are on linear layers alone, so there is nothing to look for in the base model's files.
        name = str(Path(source).resolve()) if Path(source).exists() else str(source)
        module.peft_config["default"].base_model_name_or_path = name
        module.save_pretrained(partial, save_embedding_layers=False)
        return sum(tensor.numel() for name, tensor in module.named_parameters() if ".lora_" in name)
    if hasattr(module, "merge_and_unload"):
        module = module.merge_and_unload()
    module = module.to(getattr(torch, dtype))
    module.config.dtype = getattr(torch, dtype)
    module.save_pretrained(partial)
    return sum(tensor.numel() for tensor in module.parameters())


def _copy_tokenizer(source: str | Path, partial: Path) -> bool:
    """The tokenizer's files as they are, from a directory; through transformers, from the hub. Says whether there is a chat template."""
    if Path(source).is_dir():
        for pattern in TOKENIZER_FILES:
            for path in sorted(Path(source).glob(pattern)):
                if path.is_dir():
                    shutil.copytree(path, partial / path.name)
                else:
                    shutil.copyfile(path, partial / path.name)
    else:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source).save_pretrained(partial)
    configuration = partial / "tokenizer_config.json"
    return any(partial.glob("chat_template*")) or (
        configuration.exists() and '"chat_template"' in configuration.read_text(encoding="utf-8")
    )
