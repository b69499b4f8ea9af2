"""Training through the SDK: order, losses computed here, failures that leave a run in doubt, and what is asked of the server."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends import (
    AdamParams,
    BackendError,
    Datum,
    IgnoredSetting,
    Loss,
    ModelInput,
    RequestRejected,
    TransientError,
)
from engine.backends.tinker.testing import FakeTinker, Fault, Line, values
from engine.backends.tinker.training import SERVED
from engine.training.custom import CustomLossResult, linearized, named_loss
from engine.training.losses import LOSSES

pytestmark = pytest.mark.anyio

ADAM = AdamParams(learning_rate=0.1)
CROSS_ENTROPY = Loss("cross_entropy")
LINES: tuple[Line, ...] = ("0.25", "0.38")


def datum(seed: int, *, signed: bool = False) -> Datum:
    """One that every loss can read."""
    stream = np.random.default_rng(seed)
    length = 4 + seed % 3
    mask_T = np.array([0, 0] + [1] * (length - 2), np.float32)
    advantages_T = stream.normal(size=length).astype(np.float32) * mask_T
    weights_T = mask_T * (np.where(np.arange(length) % 2, -1, 1) if signed else 1)
    inputs: dict[str, Any] = {
        "target_tokens": stream.integers(0, 100, length),
        "weights": weights_T.astype(np.float32),
        "logprobs": (-5 + stream.normal(size=length)).astype(np.float32) * mask_T,
        "reference_logprobs": (-5 + stream.normal(size=length)).astype(np.float32) * mask_T,
        "proximal_logprobs": (-5 + stream.normal(size=length)).astype(np.float32) * mask_T,
        "advantages": advantages_T,
        "mask": mask_T,
    }
    return Datum(ModelInput.from_tokens(stream.integers(0, 100, length)), inputs)


def gradient_of(fake: FakeTinker) -> Any:
    (run,) = fake.service.runs.values()
    return run.weights.gradient_V_V


def expected_gradient(fake: FakeTinker, data: Sequence[Datum], loss: Loss) -> tuple[float, Any]:
    """The loss and the table's gradient by the chain rule, from the definition of the loss alone."""
    (run,) = fake.service.runs.values()
    logits_V_V = run.weights.logits_V_V
    log_V_V = logits_V_V - np.log(np.exp(logits_V_V).sum(1, keepdims=True))
    logprobs = [log_V_V[each.model_input.tokens, each.loss_inputs["target_tokens"]] for each in data]
    found = named_loss(loss)(data, logprobs)
    total_V_V = np.zeros_like(logits_V_V)
    for each, gradient_T in zip(data, found.gradients, strict=True):
        pairs = zip(each.model_input.tokens, each.loss_inputs["target_tokens"], gradient_T, strict=True)
        for token, target, slope in pairs:
            total_V_V[token] += slope * (np.eye(len(logits_V_V))[target] - np.exp(log_V_V[token]))
    return found.loss, total_V_V


@pytest.mark.parametrize("shared_slot", [False, True], ids=["hosted", "skyrl"])
@pytest.mark.parametrize("name", sorted(LOSSES))
async def test_every_loss_has_its_own_gradient(name: str, shared_slot: bool) -> None:
    """Those that the server computes, and those that are computed here, whichever way their gradient is sent."""
    fake = FakeTinker(shared_slot=shared_slot)
    data = [datum(seed) for seed in range(4)]
    async with fake.open() as backend:
        loss, gradient_V_V = expected_gradient(fake, data, Loss(name))
        result = await backend.forward_backward(data, Loss(name)).result()
        assert result.loss == pytest.approx(loss, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(gradient_of(fake), gradient_V_V, rtol=1e-3, atol=1e-5)
        passes = [call for call, _ in fake.service.log if call.startswith("forward")]
        assert passes == (["forward_backward"] if name in SERVED else ["forward", "forward_backward"])


async def test_weights_of_any_sign_reach_a_server_that_would_misread_them() -> None:
    """What a custom loss of the trainer sends."""
    data = [datum(seed, signed=True) for seed in range(3)]
    gradients = []
    for shared_slot in (False, True):
        fake = FakeTinker(shared_slot=shared_slot)
        async with fake.open() as backend:
            await backend.forward_backward(data, CROSS_ENTROPY).result()
            gradients.append(gradient_of(fake))
            sent = [call for call, _ in fake.service.log if call.startswith("forward")]
            assert sent == (["forward", "forward_backward"] if shared_slot else ["forward_backward"])
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


async def test_a_loss_of_ones_own() -> None:
    fake = FakeTinker()
    data = [datum(1), datum(2)]

    def squares(data: Sequence[Datum], logprobs: Sequence[Any]) -> CustomLossResult:
        return CustomLossResult(
            float(sum((each**2).sum() for each in logprobs)), [2 * each for each in logprobs], {"datums": len(data)}
        )

    async with fake.open() as backend:
        scored = await backend.forward(data, CROSS_ENTROPY).result()
        result = await backend.forward_backward_custom(data, squares).result()
        assert result.loss == pytest.approx(sum((each**2).sum() for each in scored.logprobs), rel=1e-5)
        assert result.metrics["datums"] == 2
        by_hand = FakeTinker()
        async with by_hand.open() as other:
            surrogate = linearized(data, [2 * each for each in scored.logprobs])
            await other.forward_backward(surrogate, CROSS_ENTROPY).result()
        np.testing.assert_allclose(gradient_of(fake), gradient_of(by_hand), rtol=1e-6)


@pytest.mark.parametrize("line", LINES)
async def test_work_keeps_its_order_behind_a_loss_that_is_computed_here(line: Line, tmp_path: Path) -> None:
    fake = FakeTinker(line)
    async with fake.open() as backend:
        pending = [
            backend.forward_backward([datum(1)], Loss("sapo")),
            backend.optim_step(ADAM),
            backend.forward_backward([datum(2)], CROSS_ENTROPY),
            backend.save_state(tmp_path),
            backend.optim_step(ADAM),
        ]
        assert backend.version == 2
        for each in reversed(pending):
            await each.result()
        calls = [call for call, _ in fake.service.log if not call.startswith(("create", "capabilities"))]
        assert calls == ["forward", "forward_backward", "optim_step", "forward_backward", "save_state", "optim_step"]
        assert '"version": 1' in (tmp_path / "tinker.json").read_text()


async def test_a_failed_pass_ends_training_until_a_state_is_restored(tmp_path: Path) -> None:
    """The server may have stepped on part of a gradient: nothing more is trained on top of it."""
    fake = FakeTinker()
    async with fake.open() as backend:
        await backend.save_state(tmp_path).result()
        fake.service.plan("forward_backward", Fault(error=values.InternalServerError("out of memory")))
        failing, behind = backend.forward_backward([datum(1)], CROSS_ENTROPY), backend.optim_step(ADAM)
        with pytest.raises(TransientError, match="forward_backward: out of memory; status 500"):
            await failing.result()
        await behind.result()  # the server has done it already
        with pytest.raises(BackendError, match=r"in doubt .*out of memory.*go on from the last checkpoint"):
            backend.optim_step(ADAM)
        await backend.load_state(tmp_path).result()
        assert backend.version == 0
        backend.forward_backward([datum(1)], CROSS_ENTROPY)
        await backend.optim_step(ADAM).result()


async def test_work_behind_a_loss_that_failed_here_is_refused_too() -> None:
    fake = FakeTinker()
    fake.service.plan("forward", Fault(error=values.BadRequestError("no")))
    async with fake.open() as backend:
        failing, behind = backend.forward_backward([datum(1)], Loss("sapo")), backend.optim_step(ADAM)
        with pytest.raises(RequestRejected, match="forward_backward: no"):
            await failing.result()
        with pytest.raises(BackendError, match="in doubt"):
            await behind.result()
        assert not any(call == "optim_step" for call, _ in fake.service.log)


async def test_what_the_server_rejects_names_datum_and_field() -> None:
    fake = FakeTinker()
    place = ["body", "forward_backward_input", "data", 1, "loss_fn_inputs", "weights"]
    body = {"detail": [{"loc": place, "msg": "Input should be finite"}, {"loc": place, "msg": "and more"}]}
    fake.service.plan("forward_backward", Fault(error=values.UnprocessableEntityError("invalid", body=body)))
    async with fake.open() as backend:
        with pytest.raises(RequestRejected) as refused:
            await backend.forward_backward([datum(1), datum(2)], CROSS_ENTROPY).result()
    assert str(refused.value) == "forward_backward: datum 1: 'weights': Input should be finite (and 1 more); status 422"


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ([], CROSS_ENTROPY, "no datums"),
        ([datum(1), Datum(ModelInput.from_tokens([1, 400]), datum(1).loss_inputs)], CROSS_ENTROPY, "datum 1: model_input: token id 400"),
        ([datum(1)], Loss("ppo", {"clip": 1}), "'ppo' has no parameter 'clip'"),
        ([datum(1)], Loss("ppo", {"clip_low_threshold": float("nan")}), "'clip_low_threshold' is nan"),
        ([datum(1)], Loss("dpo"), "datum 0 is alone"),
        ([Datum(ModelInput.from_tokens([1] * 300), {})], CROSS_ENTROPY, "300 tokens; the model takes at most 200"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_refused_before_it_is_sent(data: list[Datum], loss: Loss, message: str) -> None:
    fake = FakeTinker()
    async with fake.open() as backend:
        with pytest.raises(RequestRejected, match=message):
            backend.forward_backward(data, loss)
        assert not any(call.startswith("forward") for call, _ in fake.service.log)


def with_logprobs(made: Any) -> Fault:
    def change(output: Any) -> Any:
        return values.ForwardBackwardOutput(loss_fn_outputs=made(output.loss_fn_outputs), metrics={})

    return Fault(change=change)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda found: found[:1], "outputs of 1 datums for 2"),
        (lambda found: [found[0], {}], "no 'logprobs' of datum 1"),
        (lambda found: [found[0], {"logprobs": values.TensorData(np.zeros(2))}], "2 log-probs of datum 1, which has 6 positions"),
        (lambda found: [found[0], {"logprobs": values.TensorData(np.array([0, 0, 0, np.nan, 0, 0]))}], "datum 1 at position 3 is nan"),
    ],
)  # fmt: skip
async def test_answers_that_make_no_sense_are_noticed(made: Any, message: str) -> None:
    fake = FakeTinker()
    fake.service.plan("forward_backward", with_logprobs(made))
    async with fake.open() as backend:
        with pytest.raises(BackendError, match=message):
            await backend.forward_backward([datum(1), datum(2)], CROSS_ENTROPY).result()
        with pytest.raises(BackendError, match="in doubt"):
            backend.optim_step(ADAM)


async def test_optimizer_parameters_and_metrics_arrive() -> None:
    fake = FakeTinker()
    seen: list[Any] = []
    async with fake.open() as backend:
        (run,) = fake.service.runs.values()
        step = run.weights.step
        run.weights.step = lambda params: seen.append(params) or step(params)  # type: ignore[method-assign,func-returns-value]
        fake.service.status_pause = 0.0
        fake.service.plan("forward_backward", Fault(statuses=(429, 429, 503)))
        backend.forward_backward([datum(1)], CROSS_ENTROPY)
        metrics = await backend.optim_step(AdamParams(0.5, 0.8, 0.9, 1e-7, 0.01, 2.0)).result()
        assert seen == [
            values.AdamParams(learning_rate=0.5, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.01, grad_clip_norm=2.0)
        ]
        assert metrics.pop("grad_norm") > 0
        assert metrics == {"http_rate_limited": 2.0, "http_server_errors": 1.0}
        again = await backend.optim_step(ADAM).result()
        assert again["http_rate_limited"] == again["http_server_errors"] == 0
        assert (backend.statistics().rate_limited, backend.statistics().server_errors) == (2, 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_submitting_a_big_batch_does_not_block_the_event_loop() -> None:
    """Conversion and submission happen in the worker; only the checks happen here."""
    from engine.backends.tinker.submissions import worker_thread

    fake = FakeTinker(max_context=None)
    length = 2000
    big = Datum(
        ModelInput.from_tokens(np.zeros(length, np.int32)),
        {"target_tokens": np.zeros(length, np.int64), "weights": np.ones(length, np.float32)},
    )
    async with fake.open(runs=worker_thread()) as backend:
        run = next(iter(fake.service.runs.values()))
        run.weights.run = lambda data, *_, **__: [np.zeros(length) for _ in data]  # type: ignore[method-assign]
        pending = backend.forward_backward([big] * 64, CROSS_ENTROPY)
        assert not pending.future.done()
        result = await pending.result()
        assert len(result.logprobs) == 64


async def test_closing_fails_what_is_not_done() -> None:
    fake = FakeTinker()
    fake.service.plan("forward", Fault(lost=True))
    async with fake.open() as backend:
        lost = backend.forward([datum(1)], CROSS_ENTROPY)
        await anyio.lowlevel.checkpoint()
    with pytest.raises(BackendError, match="closed before this work was done"):
        await lost.result()
    assert "forward" in fake.service.cancelled
    with pytest.raises(BackendError, match="closed: open it again"):
        backend.optim_step(ADAM)
    assert fake.service.sessions == ["success"]


async def test_where_gradients_are_not_clipped_it_is_said_once() -> None:
    """At the line that asked for it, and only if it did."""
    for shared_slot, norm, expected in ((True, 2.0, 1), (True, 0.0, 0), (False, 2.0, 0)):
        async with FakeTinker(shared_slot=shared_slot).open() as backend:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                for _ in range(2):
                    backend.forward_backward([datum(1)], CROSS_ENTROPY)
                    await backend.optim_step(AdamParams(grad_clip_norm=norm)).result()
            assert len(said) == expected
            for warning in said:
                assert warning.category is IgnoredSetting
                assert "https://fake does not clip gradients: a clipping norm of 2 has no effect" in str(
                    warning.message
                )
                assert warning.filename == __file__


async def test_a_freed_model_leaves_no_gradient_to_the_next_one() -> None:
    """On a server that gives a model's place away with what had gathered there."""
    outcomes = []
    for left_over in (False, True):
        fake = FakeTinker(shared_slot=True)
        async with fake.open() as backend:
            if left_over:
                backend.forward_backward([datum(3)], CROSS_ENTROPY)
            await backend.restart().result()
            backend.release(await backend.snapshot().result())
            await backend.restart().result()  # begins in the place of the first run
            backend.forward_backward([datum(1)], CROSS_ENTROPY)
            outcomes.append((await backend.optim_step(ADAM).result())["grad_norm"])
    assert outcomes[0] == outcomes[1]
