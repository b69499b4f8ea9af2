"""TRL's trainers as a second implementation: their loss functions on our numbers. Runs where `trl` is installed, which the project does not need."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.backends.values import Datum, Loss
from engine.training.corrections import correct, truncated
from engine.training.losses import evaluate
from engine.training.normalization import Normalization, normalize
from engine.training.preference import dpo_metrics
from tests.training.policies import policy_data

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("trl", minversion="1.0")
    GRPOTrainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    DPOTrainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer

LENGTHS = (5, 1, 8, 3)


def rows(arrays: list[Any]) -> Any:
    """One row for each datum, zeros behind its end."""
    table = torch.zeros(len(arrays), max(map(len, arrays)), dtype=torch.float64)
    for row, values in zip(table, arrays, strict=True):
        row[: len(values)] = torch.as_tensor(np.asarray(values, np.float64))
    return table


def field(data: list[Datum], name: str) -> Any:
    return rows([datum.loss_inputs[name] for datum in data])


class OneProcess:
    """What the trainers ask of an accelerator."""

    num_processes = 1
    sync_gradients = True
    device = torch.device("cpu")

    def gather(self, values: Any) -> Any:
        return values

    gather_for_metrics = gather

    def reduce(self, values: Any, reduction: str) -> Any:
        return values


def grpo_trainer(logprobs: Any, **settings: Any) -> Any:
    arguments = {
        "delta": None,
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "steps_per_generation": 1,
    }
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        accelerator=OneProcess(),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(**{name: settings.pop(name, value) for name, value in arguments.items()}),
        _metrics={"train": defaultdict(list)},
        **{
            "aux_loss_enabled": False,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "loss_type": "grpo",
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "use_vllm": False,
            "vllm_importance_sampling_correction": False,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": 16,
            "_entropy_bonus_enabled": False,
            **settings,
        },
    )


@pytest.mark.parametrize(
    ("name", "params", "kind", "settings"),
    [
        ("ppo", {}, "sequence", {"loss_type": "grpo"}),
        ("ppo", {}, "token", {"loss_type": "bnpo"}),
        ("ppo", {}, "constant", {"loss_type": "dr_grpo"}),
        ("dapo", {}, "token", {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("cispo", {}, "token", {"loss_type": "cispo", "epsilon_high": 4.0}),
        ("sapo", {}, "sequence", {"loss_type": "sapo"}),
        ("opsm", {"delta": 0.05}, "token", {"loss_type": "dapo", "off_policy_mask_threshold": 0.05}),
        (
            "gspo",
            {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
            "gspo",
            {"importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.1},
        ),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_policy_losses(name: str, params: dict[str, float], kind: str, settings: dict[str, Any], seed: int) -> None:
    data, new = policy_data(seed, LENGTHS)
    logprobs, mask = rows(new).requires_grad_(), field(data, "mask")
    inputs = {
        "prompt_ids": torch.zeros(4, 1),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": field(data, "advantages"),
        "old_per_token_logps": field(data, "logprobs"),
        "num_items_in_batch": mask.sum(),
    }
    if name in {"gspo", "opsm"}:  # one advantage for a sequence
        inputs["advantages"] = inputs["advantages"].amax(1) + inputs["advantages"].amin(1)
    theirs = GRPOTrainer._compute_loss(grpo_trainer(logprobs, **settings), None, inputs)
    (their_gradient,) = torch.autograd.grad(theirs, logprobs)
    if kind == "gspo":  # a mean over sequences, each of which the loss counts once already
        value, gradients = evaluate(Loss(name, params), data, new)
        value, gradients = value / 4, [gradient / 4 for gradient in gradients]
    else:
        scaled = normalize_exactly(data, kind)
        value, gradients = evaluate(Loss(name, params), scaled, new)
    assert float(theirs.detach()) == pytest.approx(value)
    np.testing.assert_allclose(their_gradient.numpy(), rows(gradients).numpy(), atol=1e-12)


def normalize_exactly(data: list[Datum], kind: Any) -> list[Datum]:
    """`normalize`, whose single-precision factor is checked apart, in double precision."""
    single: Normalization = kind
    factors = [
        np.divide(new.loss_inputs["advantages"].sum(), old.loss_inputs["advantages"].sum())
        for new, old in zip(normalize(data, single, constant=16), data, strict=True)
    ]
    counts = np.array([datum.loss_inputs["mask"].sum() for datum in data])
    exact = {"token": np.full(4, 1 / counts.sum()), "sequence": 1 / counts / 4, "constant": np.full(4, 1 / 64)}[kind]
    np.testing.assert_allclose(factors, exact, rtol=1e-6)
    return [
        Datum(datum.model_input, {**datum.loss_inputs, "advantages": datum.loss_inputs["advantages"] * factor})
        for datum, factor in zip(data, exact, strict=True)
    ]


def test_k3_as_their_kl_term() -> None:
    data, new = policy_data(5, LENGTHS)
    logprobs, mask = rows(new).requires_grad_(), field(data, "mask")
    inputs = {
        "prompt_ids": torch.zeros(4, 1),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.zeros(4),
        "old_per_token_logps": field(data, "logprobs"),
        "ref_per_token_logps": field(data, "reference_logprobs"),
        "num_items_in_batch": mask.sum(),
    }
    trainer = grpo_trainer(logprobs, loss_type="dapo", beta=0.3)
    theirs = GRPOTrainer._compute_loss(trainer, None, inputs)
    (their_gradient,) = torch.autograd.grad(theirs, logprobs)
    # Theirs is not weighted off-policy: the same as ours where the sampler is the policy.
    on_policy = [Datum(d.model_input, {**d.loss_inputs, "logprobs": lp}) for d, lp in zip(data, new, strict=True)]
    value, gradients = evaluate(Loss("kl_k3", {"coef": 0.3}), on_policy, new)
    assert float(theirs.detach()) == pytest.approx(value / float(mask.sum()))
    np.testing.assert_allclose(their_gradient.numpy(), rows(gradients).numpy() / float(mask.sum()), atol=1e-12)


def test_a_correction_is_their_importance_sampling_ratio() -> None:
    data, new = policy_data(6, LENGTHS)
    mask = field(data, "mask")
    proximal = [datum.loss_inputs["proximal_logprobs"] for datum in data]
    ratio = torch.exp(rows(proximal) - field(data, "logprobs")).clamp(max=2.0)
    inputs = {
        "prompt_ids": torch.zeros(4, 1),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": field(data, "advantages"),
        "old_per_token_logps": rows(proximal),
        "importance_sampling_ratio": ratio,
        "num_items_in_batch": mask.sum(),
    }
    trainer = grpo_trainer(rows(new), loss_type="dapo", use_vllm=True, vllm_importance_sampling_correction=True)
    theirs = GRPOTrainer._compute_loss(trainer, None, inputs)
    corrected, _ = correct(data, proximal, truncated(2.0))
    value, _ = evaluate(Loss("ppo"), corrected, new)
    assert float(theirs) == pytest.approx(value / float(mask.sum()), rel=1e-5)


def datum_with_weights(datum: Datum) -> Datum:
    return Datum(datum.model_input, {**datum.loss_inputs, "weights": datum.loss_inputs["mask"]})


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_dpo(beta: float, seed: int) -> None:
    data, new = policy_data(seed, LENGTHS)
    order = [0, 2, 1, 3]  # theirs has all chosen first
    mask = field(data, "mask")[order]
    logprobs = rows(new)[order].requires_grad_()
    reference = (field(data, "reference_logprobs")[order] * mask).sum(1)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=OneProcess(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        label_smoothing=0.0,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros(4, mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(4, mask.shape[1] + 1),
        "completion_mask": torch.nn.functional.pad(mask, (1, 0)),
        "ref_chosen_logps": reference[:2],
        "ref_rejected_logps": reference[2:],
    }

    def model(**_: Any) -> Any:
        nothing = torch.zeros_like(mask)
        return SimpleNamespace(log_probs=logprobs * mask, entropy=nothing, mean_logits=nothing, is_top1=nothing > 0)

    theirs = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    (their_gradient,) = torch.autograd.grad(theirs, logprobs)
    value, gradients = evaluate(Loss("dpo", {"beta": beta}), data, new)
    assert float(theirs.detach()) == pytest.approx(value / 2)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    ours = dpo_metrics([datum_with_weights(datum) for datum in data], new, beta)
    assert ours == pytest.approx(
        {
            "dpo_loss": float(theirs.detach()),
            "accuracy": metrics["rewards/accuracies"],
            "margin": metrics["rewards/margins"],
            "chosen_reward": metrics["rewards/chosen"],
            "rejected_reward": metrics["rewards/rejected"],
        }
    )
    np.testing.assert_allclose(their_gradient.numpy(), rows(gradients).numpy()[order] / 2, atol=1e-12)
