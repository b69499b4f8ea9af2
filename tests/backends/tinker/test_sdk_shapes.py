"""The in-memory double takes what the SDK takes: its methods' parameters are the SDK's, where an SDK is installed."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from engine.backends.tinker.sdk import Sdk
from engine.backends.tinker.testing import FakeTinker, client, module, values

tinker = pytest.importorskip("tinker", reason="pip install 'callsheet[tinker]'")


def parameters(function: Any) -> list[str]:
    return [
        name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind.name[:3] != "VAR"
    ]


def methods(kind: type) -> dict[str, Any]:
    return {
        name: member
        for each in reversed(kind.__mro__[:-1])
        for name, member in vars(each).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


NEWER = Sdk(tinker).returns_futures
REST = importlib.import_module("tinker.lib.public_interfaces.rest_client").RestClient
SERVICE = module.NewerServiceClient if NEWER else module.OlderServiceClient


@pytest.mark.parametrize(
    ("double", "real"),
    [
        (client.TrainingClient, tinker.TrainingClient),
        (client.SamplingClient, tinker.SamplingClient),
        (client.RestClient, REST),
        (SERVICE, tinker.ServiceClient),
    ],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_methods(double: type, real: type) -> None:
    for name, ours in methods(double).items():
        if double is client.RestClient and name == "get_server_capabilities" and not NEWER:
            continue  # the older line asks the service client
        theirs = parameters(getattr(real, name))
        if name == "list_checkpoints":
            theirs = ["self", "run"]  # by place
        assert set(parameters(ours)) <= set(theirs), name
        shared = [each for each in theirs if each in parameters(ours)]
        assert parameters(ours) == shared, f"{name}: in another order"


def test_values() -> None:
    """Every field that is sent exists there."""
    for name in (
        "EncodedTextChunk",
        "ImageChunk",
        "ImageAssetPointerChunk",
        "ModelInput",
        "AdamParams",
        "SamplingParams",
    ):
        real = getattr(tinker.types, name)
        fields = {field.name for field in getattr(values, name).__attrs_attrs__}
        assert fields <= set(real.model_fields), name
    assert set(parameters(tinker.types.Datum)) >= {"model_input", "loss_fn_inputs"}
    for name in ("tokens", "logprobs", "stop_reason"):
        assert hasattr(tinker.types.SampledSequence, name) or name in tinker.types.SampledSequence.__annotations__


def test_errors() -> None:
    """Names and ancestors, by which they are told apart."""
    for name in values.__all__:
        double, real = getattr(values, name), getattr(tinker, name, None)
        if real is None or not issubclass(double, Exception):
            continue
        ours = [kind.__name__ for kind in double.__mro__]
        theirs = [kind.__name__ for kind in real.__mro__]
        assert ours == [each for each in theirs if each in ours], name
    assert tinker.RateLimitError.status_code == values.RateLimitError.status_code == 429


def test_the_line_is_told_apart() -> None:
    assert Sdk(FakeTinker("0.38").module).returns_futures
    assert not Sdk(FakeTinker("0.25").module).returns_futures
    assert (int(tinker.__version__.split(".")[1]) >= 36) == NEWER
