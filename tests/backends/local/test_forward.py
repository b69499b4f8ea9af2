"""The written-out forward pass against the Hugging Face module's own: log-probabilities and gradients, shared beginnings and not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.local import kernels  # noqa: E402
from engine.backends.local.assembly import Assembly, assemble  # noqa: E402
from engine.backends.local.losses import check_loss  # noqa: E402
from engine.backends.local.models import load  # noqa: E402
from engine.backends.local.packing import apart, plan, plan_pairs  # noqa: E402
from engine.backends.local.trainer import Pass, Trainer  # noqa: E402
from engine.backends.values import AdamParams, Datum, Loss, ModelInput  # noqa: E402

pytestmark = pytest.mark.local

CPU = torch.device("cpu")


def prepared(model: Path, *, fast: bool = True, lora_rank: int | None = None, dtype: str = "float32") -> Assembly:
    module, _ = load(model, dtype)
    return assemble(module, lora_rank=lora_rank, lora_alpha=16, device=CPU, seed=3, fast=fast)


def datums(seed: int = 0, groups: int = 3, size: int = 4) -> list[Datum]:
    """Groups that share a prompt, of different lengths; the prompt is not trained."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(groups):
        prompt = random.integers(0, 256, random.integers(6, 20))
        for _ in range(size):
            whole = np.concatenate((prompt, random.integers(0, 256, random.integers(2, 15))))
            weights = (np.arange(1, len(whole)) >= len(prompt)) * random.normal(size=len(whole) - 1)
            inputs = {"target_tokens": whole[1:], "weights": weights.astype(np.float32)}
            made.append(Datum(ModelInput.from_tokens(whole[:-1]), inputs))
    return made


def outcome(
    assembly: Assembly, data: list[Datum], budget: int = 4096, steps: int = 0
) -> tuple[float, Any, dict[str, Any]]:
    """Loss, log-probabilities, and gradients by name, after some steps of training."""
    trainer = Trainer(assembly.trainer, assembly.trainable, budget, lambda: False)
    spec, params = check_loss(Loss("cross_entropy"))
    for _ in range(steps):
        trainer.run(Pass(data, spec, params, backward=True))
        trainer.optim_step(AdamParams(1e-2))
    result = trainer.run(Pass(data, spec, params, backward=True))
    state = assembly.trainable
    gradients = {name: view.clone() for name, view in state.layout.named(state.gradient_P).items()}
    return result.loss, result.logprobs, gradients


def assert_same(
    a: tuple[float, Any, dict[str, Any]], b: tuple[float, Any, dict[str, Any]], tolerance: float = 1e-4
) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-4)
    for mine, theirs in zip(a[1], b[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance)
    assert a[2].keys() == b[2].keys()
    for name in a[2]:
        scale = max(1.0, float(b[2][name].abs().max()))
        assert float((a[2][name] - b[2][name]).abs().max()) < tolerance * scale, name


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_llama_matches_the_module(tiny: Path, lora_rank: int | None) -> None:
    """Adapters start at zero: only after some steps does their whole path count."""
    steps = 0 if lora_rank is None else 3
    ours = prepared(tiny, lora_rank=lora_rank)
    theirs = prepared(tiny, fast=False, lora_rank=lora_rank)
    assert (ours.forward, theirs.forward) == ("llama", "generic (switched off)")
    assert_same(outcome(ours, datums(), steps=steps), outcome(theirs, datums(), steps=steps))


def test_splitting_a_pass_changes_nothing(tiny: Path) -> None:
    whole = outcome(prepared(tiny), datums())
    assert_same(outcome(prepared(tiny), datums(), budget=40), whole)


def test_sharing_a_beginning_changes_nothing(tiny: Path) -> None:
    alone = prepared(tiny)
    alone.trainer.shares_prefixes = False  # type: ignore[misc]
    together = prepared(tiny)
    assert any(
        family.shared for pack in plan([d.model_input.tokens for d in datums()], 4096) for family in pack.families
    )
    assert_same(outcome(together, datums()), outcome(alone, datums()))


def test_other_losses_scale_is_what_is_active(tiny: Path) -> None:
    """Without weights there is no gradient, and log-probabilities are given all the same."""
    still = [Datum(d.model_input, {**d.loss_inputs, "weights": np.zeros(d.model_input.length)}) for d in datums()]
    loss, logprobs, gradients = outcome(prepared(tiny), still)
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients.values())
    for mine, theirs in zip(logprobs, outcome(prepared(tiny), datums())[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_bfloat16_is_close(tiny: Path) -> None:
    exact, rough = (
        outcome(prepared(tiny), datums(), steps=2),
        outcome(prepared(tiny, dtype="bfloat16"), datums(), steps=2),
    )
    gaps = np.concatenate([np.abs(a - b) for a, b in zip(exact[1], rough[1], strict=True)])
    assert 0 < gaps.mean() < 0.1


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_the_llama_path_takes_its_relatives(family: str, other_family: Callable[[str], Path]) -> None:
    ours = prepared(other_family(family))
    assert ours.forward == "llama"
    assert_same(outcome(ours, datums()), outcome(prepared(other_family(family), fast=False), datums()))


def test_a_forward_pass_that_differs_is_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.backends.local.llama_weights.swiglu", lambda x: x.chunk(2, -1)[0])
    assert prepared(tiny).forward.startswith("generic (the written-out forward pass differs")


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "turn_heads"])
def test_kernels_match_autograd(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    cos, sin = (torch.randn(5, 1, 8, dtype=torch.float64) for _ in range(2))
    cos, sin = torch.cat((cos[..., :4],) * 2, -1), torch.cat((-sin[..., :4], sin[..., :4]), -1)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "rms_norm": (lambda x, w: kernels.rms_norm(x, w, 1e-6), (x, weight)),
        "swiglu": (kernels.swiglu, (x,)),
        "turn_heads": (lambda x: kernels.turn_heads(x, 3, 1, cos, sin), (x,)),
    }
    function, inputs = calls[name]
    with torch.no_grad():
        plain = function(*inputs)
    taped = function(*inputs)
    for a, b in zip(*(one if isinstance(one, tuple) else (one,) for one in (plain, taped)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-4 if name == "rms_norm" else 1e-7)


def test_plans_hold_every_sequence_once_within_the_budget() -> None:
    sequences = [datum.model_input.tokens for datum in datums(groups=9, size=5)]
    for budget in (1, 30, 100, 10_000):
        packs = plan(sequences, budget)
        assert sorted(index for pack in packs for index in pack.members) == list(range(45))
        for pack in packs:
            prefixes = [family.shared for family in pack.families if family.shared]
            own = [len(sequences[m]) - family.shared for family in pack.families for m in family.members]
            size = len(prefixes) * max(prefixes, default=0) + len(own) * max(own)
            assert size <= budget or len(pack.members) == 1
            assert min(own) >= 1
            for family in pack.families:
                first = sequences[family.members[0]][: family.shared]
                assert all(np.array_equal(sequences[m][: family.shared], first) for m in family.members)
    assert max(family.shared for pack in plan(sequences, 10_000) for family in pack.families) >= 6
    assert all(not family.shared for pack in plan(sequences, 100, share=False) for family in pack.families)


@pytest.mark.parametrize("share", [True, False])
def test_plans_keep_pairs_together_and_read_their_prompt_once(share: bool) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(25):
        prompt = rng.integers(0, 9, rng.integers(1, 30)).astype(np.int32)
        pairs += [np.append(prompt, rng.integers(0, 9, rng.integers(1, 20))).astype(np.int32) for _ in range(2)]
    for budget in (1, 60, 500, 10_000):
        packs = plan_pairs(pairs, budget, share=share)
        members = [member for pack in packs for member in pack.members]
        assert sorted(members) == list(range(len(pairs)))
        assert all(
            second == first + 1 and first % 2 == 0 for first, second in zip(members[::2], members[1::2], strict=True)
        )
        for pack in packs:
            for family in pack.families:
                first, second = (pairs[member] for member in family.members)
                assert family.shared < min(len(first), len(second))
                assert np.array_equal(first[: family.shared], second[: family.shared])
                assert share or not family.shared
            own = [len(pairs[member]) - family.shared for family in pack.families for member in family.members]
            prefixes = [family.shared for family in pack.families if family.shared]
            positions = max(own) * len(own) + max(prefixes, default=0) * len(prefixes)
            assert positions <= budget or len(pack.families) == 1
    if share:
        assert len(plan_pairs(pairs, 500)) < len(plan_pairs(pairs, 500, share=False))


def test_a_common_system_prompt_does_not_hide_the_problems_own() -> None:
    system, problems = list(range(10)), [[50 + n] * 20 for n in range(3)]
    sequences = [np.array([*system, *p, 200 + k, 7, k], np.int32) for p in problems for k in range(4)]
    (pack,) = plan(sequences, 10_000)
    assert [family.shared for family in pack.families] == [30, 30, 30]
    assert apart(sequences).members == list(range(12))


def adam_reference(steps: list[AdamParams], gradients: list[Any], start: Any) -> Any:
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter])
    for params, gradient in zip(steps, gradients, strict=True):
        optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        parameter.grad = gradient.clone()
        if params.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_([parameter], params.grad_clip_norm)
        optimizer.step()
    return parameter.detach()


def test_adamw_is_torchs(tiny: Path) -> None:
    """Every step with hyperparameters of its own."""
    assembly = prepared(tiny)
    state = assembly.trainable
    trainer = Trainer(assembly.trainer, state, 4096, lambda: False)
    steps = [
        AdamParams(1e-2),
        AdamParams(1e-3, weight_decay=0.1, grad_clip_norm=0.5),
        AdamParams(3e-3, beta1=0.8, beta2=0.99, eps=1e-6),
        AdamParams(1e-3, grad_clip_norm=1e9),
    ]
    torch.manual_seed(0)
    gradients = [torch.randn_like(state.weights_P) for _ in steps]
    expected = adam_reference(steps, gradients, state.weights_P)
    for params, gradient in zip(steps, gradients, strict=True):
        state.gradient_P.copy_(gradient)
        assert trainer.optim_step(params)["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
        assert not state.gradient_P.any()
    torch.testing.assert_close(state.weights_P, expected, atol=2e-6, rtol=1e-5)
    assert trainer.version == len(steps)
