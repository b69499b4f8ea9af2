"""From a Hugging Face module to what the two threads work with: networks, and the flat buffer of trainable numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from engine.backends.local.generic import GenericNetwork
from engine.backends.local.llama import LlamaNetwork
from engine.backends.local.llama_weights import LlamaShape, Rope, adapter_units, base_units
from engine.backends.local.network import Network
from engine.backends.local.packing import Packed, apart
from engine.backends.local.parameters import Layout, Trainable
from engine.backends.local.states import model_mark

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_BIASES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


@attrs.frozen(eq=False)
class Assembly:
    """A model, ready."""

    trainer: Network
    sampler: Network
    trainable: Trainable
    mark: str
    max_context: int | None
    vocab_size: int
    forward: str
    """Which forward pass is used, "llama" or "generic", and why."""
    details: Mapping[str, Any]
    """What a saved state says of its model, so that it can be exported: LoRA rank and alpha, dtype."""


@attrs.frozen(eq=False)
class Prepared:
    """A module with its adapters, where it has any, and its parameters by canonical name."""

    module: Any
    names: Mapping[str, str]
    """The module's own name of each parameter."""
    trained: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    mark: str
    """Digest by which a saved state knows the model it is of."""


def prepare(module: Any, *, lora_rank: int | None, lora_alpha: float, seed: int) -> Prepared:
    """Puts adapters on `module`, which it takes over, where a rank says so."""
    model_type = module.config.model_type
    if lora_rank is not None:
        module = _with_adapters(module, lora_rank, lora_alpha, seed)
    names = {canonical(name): name for name, _ in module.named_parameters()}
    parameters = {canonical(name): parameter for name, parameter in module.named_parameters()}
    trained = {name: tensor.detach() for name, tensor in parameters.items() if lora_rank is None or ".lora_" in name}
    fixed = {name: tensor.detach() for name, tensor in parameters.items() if name not in trained}
    mark = model_mark(
        {name: tuple(tensor.shape) for name, tensor in trained.items()},
        {"type": model_type, "lora_alpha": lora_alpha if lora_rank is not None else None},
        torch.cat([tensor.flatten()[:: max(1, tensor.numel() // 64)] for tensor in fixed.values()]) if fixed else None,
    )
    return Prepared(module, names, trained, fixed, mark)


def assemble(
    module: Any, *, lora_rank: int | None, lora_alpha: float, device: torch.device, seed: int, fast: bool = True
) -> Assembly:
    """Prepares `module`, which it takes over."""
    config = module.config
    dtype = module.dtype
    module.eval().to(device)
    inner = module.model.rotary_emb if _llama_reason(module) is None else None
    prepared = prepare(module, lora_rank=lora_rank, lora_alpha=lora_alpha, seed=seed)
    module, names, trained, fixed = prepared.module, prepared.names, prepared.trained, prepared.fixed
    parameters = {**trained, **fixed}
    text = config.get_text_config()
    rest: dict[str, Any] = {
        "mark": prepared.mark,
        "max_context": getattr(text, "max_position_embeddings", None),
        "vocab_size": text.vocab_size,
        "details": {
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha if lora_rank is not None else None,
            "dtype": str(dtype).removeprefix("torch."),
        },
    }
    reason = _llama_reason(_base(module)) if fast else "switched off"
    if reason is None and inner is not None:
        network, trainable = _llama(
            text,
            parameters,
            trained,
            fixed,
            inner,
            None if lora_rank is None else lora_alpha / lora_rank,
            dtype,
            device,
        )
        difference = _difference(module, network, trainable, text.vocab_size, device)
        tolerance = 1e-3 if dtype == torch.float32 else 0.1
        if difference <= tolerance:
            return Assembly(network, network, trainable, forward="llama", **rest)
        reason = f"the written-out forward pass differs from the module's by {difference:.2g}"
    layout = Layout.of(trained, ())
    trainable = Trainable(layout, trained, dtype, device)
    _share(module, trainable.named_views(), names)
    network_generic = GenericNetwork(module, {name: names[name] for name in trained})
    return Assembly(
        network_generic, network_generic.for_another_thread(), trainable, forward=f"generic ({reason})", **rest
    )


def canonical(name: str) -> str:
    """A parameter's name as the model without adapters has it; adapters as `<layer>.lora_A.weight`."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")


def _with_adapters(module: Any, rank: int, alpha: float, seed: int) -> Any:
    """LoRA (2106.09685) on every linear layer except the output head."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for an attribute by its old name, and the warning tells users nothing.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(
            module, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        ).eval()


def _base(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _share(module: nn.Module, views: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Lets the module's parameters lie where the flat buffer has them, so that nothing is held twice."""
    parameters = dict(module.named_parameters())
    for name, view in views.items():
        parameters[names[name]].data = view


def _llama_reason(module: Any) -> str | None:
    """Why the Llama forward pass does not fit a module; None: it fits."""
    config = module.config
    rope = getattr(config, "rope_parameters", None) or {}
    checks = {
        f"model type {config.model_type}": config.model_type in {"llama", "mistral", "qwen2"},
        f"activation {getattr(config, 'hidden_act', None)}": getattr(config, "hidden_act", None) in {"silu", "swish"},
        f"rope type {rope.get('rope_type')}": rope.get("rope_type", "default") in _STATIC_ROPE,
        "sliding windows": not getattr(config, "use_sliding_window", True)
        or (getattr(config, "sliding_window", None) or config.max_position_embeddings)
        >= config.max_position_embeddings,
        "a bias in the mlp": not getattr(config, "mlp_bias", False),
    }
    return next((f"it has {what}" for what, holds in checks.items() if not holds), None)


def _llama(
    config: Any,
    parameters: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    rotary: nn.Module,
    lora_scale: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[LlamaNetwork, Trainable]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = LlamaShape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        eps=config.rms_norm_eps,
        lora_scale=lora_scale,
        tied="lm_head.weight" not in parameters,
        biased=frozenset(module for module in _BIASES if f"model.layers.0.{module}.bias" in parameters),
    )

    def tables(length: int) -> tuple[Tensor, Tensor]:
        # Not as inference tensors, which the sampler's thread would make: the trainer's graph holds these too.
        with torch.inference_mode(mode=False), torch.no_grad():
            positions_1_T = torch.arange(length, device=device)[None]
            cos, sin = rotary(torch.empty(0, dtype=dtype, device=device), positions_1_T)
            return cos[0].to(dtype), sin[0].to(dtype)

    base = Layout.of(fixed, base_units(shape)) if fixed else None
    frozen = {} if base is None else base.joined(base.pack(fixed, dtype, device))
    units = base_units(shape) if lora_scale is None else adapter_units(shape)
    trainable = Trainable(Layout.of(trained, units), trained, dtype, device)
    return LlamaNetwork(shape, frozen, Rope(tables)), trainable


@torch.no_grad()
def _difference(
    module: Any, network: LlamaNetwork, trainable: Trainable, vocab_size: int, device: torch.device
) -> float:
    """Largest difference of log-probabilities between the module's forward pass and ours, on random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens_B_T = torch.randint(vocab_size, (2, 24), generator=generator)
    theirs = module(input_ids=tokens_B_T.to(device), use_cache=False).logits.float().log_softmax(-1)
    bound = network.bind(trainable.leaves())
    sequences = list(tokens_B_T.numpy().astype(np.int32))
    packed = Packed.of(apart(sequences), sequences, device)
    ours = bound.weights.logits(bound.hidden(packed)).log_softmax(-1).view(theirs.shape)
    return float((ours - theirs).abs().max())
