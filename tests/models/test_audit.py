"""The audit fails closed: it names the module and the op, and believes no list it can check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCAB, TinyRunner, tiny_config, tiny_model
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from detinfer.errors import UnsupportedModelError
from detinfer.models import attention
from detinfer.models.audit import audit_model

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "rsqrt": lambda x: x * torch.rsqrt(x.abs() + 1),
    "pow": lambda x: x.pow(2),
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "linear": lambda x: F.linear(x, x.new_ones(x.shape[-1], x.shape[-1])),
    "matmul": lambda x: x @ x.new_ones(x.shape[-1], x.shape[-1]),
    "einsum": lambda x: torch.einsum("btd,d->btd", x, x.new_ones(x.shape[-1])),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "sum": lambda x: x / x.sum(-1, keepdim=True),
    "max": lambda x: x - x.max(),
    "cumsum": lambda x: x.cumsum(1),
    "topk": lambda x: x.topk(x.shape[-1])[0],
    "sort": lambda x: x.sort(dim=-1)[0],
    "add": lambda x: torch.add(x, x, alpha=0.3),
    "sub": lambda x: torch.sub(x, x, alpha=0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "index_add": lambda x: x.index_add(2, torch.zeros(1, dtype=torch.int64), x[..., :1]),
    "index_put_": lambda x: x.clone().index_put_(
        (torch.zeros(2, dtype=torch.int64),) * 3, x.new_ones(2), accumulate=True
    ),
    "div": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "real": lambda x: (x * 1j).real,
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "item": lambda x: x * float(x[0, 0, 0]),
}


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.fixture(scope="module")
def runner() -> TinyRunner:
    return TinyRunner(tiny_model(tiny_config("llama")))


def with_activation(runner: TinyRunner, module: nn.Module, monkeypatch: Any) -> None:
    monkeypatch.setitem(runner.model.model.layers[1].mlp._modules, "act_fn", module)


@pytest.mark.parametrize("op", sorted(REFUSED))
def test_unlisted_ops_are_refused_by_module_and_op(
    op: str, runner: TinyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_activation(runner, Lambda(REFUSED[op]), monkeypatch)
    with pytest.raises(UnsupportedModelError) as refusal:
        audit_model(runner.model, VOCAB, runner)
    assert str(refusal.value).startswith("model.layers.1.mlp.act_fn (Lambda): ")
    assert f"op aten.{op}." in str(refusal.value)


def test_the_same_module_without_such_an_op_passes(
    runner: TinyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_activation(runner, Lambda(lambda x: (x * 0.5 + 1).clamp(min=0)), monkeypatch)
    audit_model(runner.model, VOCAB, runner)


def test_an_unpatched_leaf_is_refused_by_name(
    runner: TinyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp = runner.model.model.layers[0].mlp
    monkeypatch.setitem(mlp._modules, "down_proj", nn.Linear(100, 72, bias=False))
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\.mlp\.down_proj \(Linear\).*linear"
    ):
        audit_model(runner.model, VOCAB, runner)


@pytest.mark.parametrize("row", [0, -1])
def test_allowed_ops_that_read_other_rows_are_refused(
    row: int, runner: TinyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past failure 17: every op is harmless, the batch is read all the same."""
    with_activation(runner, Lambda(lambda x: x + x[:, row].unsqueeze(1)), monkeypatch)
    with pytest.raises(UnsupportedModelError, match="reads other rows"):
        audit_model(runner.model, VOCAB, runner)


def test_a_layer_that_does_not_attend_is_refused(
    runner: TinyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Skips(nn.Module):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return hidden_states, None

    monkeypatch.setitem(runner.model.model.layers[1]._modules, "self_attn", Skips())
    with pytest.raises(UnsupportedModelError, match=r"layers \[0\], expected each of 2"):
        audit_model(runner.model, VOCAB, runner)


def test_a_window_that_is_not_the_configurations_is_refused() -> None:
    runner = TinyRunner(tiny_model(tiny_config("gemma3_text")))
    audit_model(runner.model, VOCAB, runner)
    runner.model.config.layer_types = ["full_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match=r"layer 0 .* with window 6, expected 0"):
        audit_model(runner.model, VOCAB, runner)


def test_nothing_is_left_behind(runner: TinyRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    with_activation(runner, Lambda(torch.tanh), monkeypatch)
    with pytest.raises(UnsupportedModelError):
        audit_model(runner.model, VOCAB, runner)
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_pre_hooks
    assert attention._recorder is None
    assert torch.tanh(torch.zeros(1)).item() == 0
