"""The network is the authors': parameter counts, names, and each formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detinfer.errors import ConfigError
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.network import Network
from detinfer.recursive.official import load_official
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.torch_kernels import TorchKernels
from detinfer.recursive.weights import load_weights, save_weights

SHAPE = {"vocab": 11, "cells": 81, "hidden": 512, "intermediate": 1536, "cycles": 3, "updates": 6}
OFFICIAL = {
    "mlp": RecursiveConfig("sudoku9", mixer="mlp", mixed=512, prefix=16, verdicts=2, **SHAPE),
    "attention": RecursiveConfig(
        "sudoku9", mixer="attention", heads=8, prefix=16, verdicts=2, **SHAPE
    ),
}
# The same, small enough to be written out.
SMALL = {
    mixer: replace(
        config, hidden=64, intermediate=96, mixed=config.mixed and 40, heads=config.heads and 2
    )
    for mixer, config in OFFICIAL.items()
}
UNITS = RecursiveConfig("sudoku6", 7, 36, 24, "units", 3, 40)


def weights_of(config, scale=0.3):
    random = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=random) * scale
        for name, shape in config.shapes().items()
    }


def network(config, weights):
    return Network(config, weights, TorchKernels(), torch.from_numpy(TASKS[config.task].units))


def run(config, weights, boards):
    net = network(config, weights)
    y, z = net.start(len(boards))
    y, z = net.recursion(net.embed(boards), y, z)
    return y, z, *net.heads(y)


@pytest.mark.parametrize(("mixer", "count"), [("mlp", 5_028_866), ("attention", 6_828_034)])
def test_parameters_are_as_many_as_the_authors_train(mixer, count):
    not_trained = ("H_init", "L_init", "puzzle_emb.weights")
    shapes = OFFICIAL[mixer].shapes()
    assert count == sum(
        torch.Size(shape).numel() for name, shape in shapes.items() if name not in not_trained
    )


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def swiglu(x, weights, name):
    gate, up = (x @ weights[name + "gate_up_proj.weight"].T).chunk(2, -1)
    return (gate * gate.sigmoid() * up) @ weights[name + "down_proj.weight"].T


def rotated(x):
    """Rotate by position, [tokens, dim], a pair at a time."""
    tokens, dim = x.shape
    out = x.clone()
    for i in range(dim // 2):
        angle = torch.arange(tokens) * 10000.0 ** (-2 * i / dim)
        out[:, i] = x[:, i] * angle.cos() - x[:, i + dim // 2] * angle.sin()
        out[:, i + dim // 2] = x[:, i + dim // 2] * angle.cos() + x[:, i] * angle.sin()
    return out


def attention(h, weights, name, config, visible):
    """One board, head by head, cell by cell over what it may see."""
    dim = config.hidden // config.heads
    q, k, v = (h @ weights[name + "qkv_proj.weight"].T).chunk(3, -1)
    out = torch.zeros_like(h)
    for head in range(config.heads):
        part = slice(head * dim, (head + 1) * dim)
        qs, ks = q[:, part], k[:, part]
        if config.mixer == "attention":
            qs, ks = rotated(qs), rotated(ks)
        scores = (qs @ ks.T * dim**-0.5).masked_fill(~visible(head), -torch.inf)
        out[:, part] = scores.softmax(-1) @ v[:, part]
    return out @ weights[name + "o_proj.weight"].T


def expected_layers(h, weights, config):
    units = torch.from_numpy(TASKS[config.task].units)

    def visible(head):
        tokens = config.prefix + config.cells
        if config.mixer == "attention":
            return torch.ones(tokens, tokens, dtype=torch.bool)
        seen = torch.zeros(tokens, tokens, dtype=torch.bool)
        for cells in units[head * 3 // config.heads]:
            seen[cells.unsqueeze(1), cells] = True
        return seen

    for layer in ("L_level.layers.0.", "L_level.layers.1."):
        if config.mixer == "mlp":
            h = rms(h.T + swiglu(h.T, weights, layer + "mlp_t.")).T
        else:
            h = rms(h + attention(h, weights, layer + "self_attn.", config, visible))
        h = rms(h + swiglu(h, weights, layer + "mlp."))
    return h


@pytest.mark.parametrize("config", [*SMALL.values(), UNITS], ids=["mlp", "attention", "units"])
def test_one_recursion_written_out(config):
    weights = {name: weight.double() for name, weight in weights_of(config, 0.1).items()}
    boards = torch.randint(
        config.vocab, (2, config.cells), generator=torch.Generator().manual_seed(0)
    )
    y, z, logits, verdict = run(config, weights, boards)
    for at, board in enumerate(boards):
        x = weights["embed_tokens.embedding_weight"][board]
        if config.prefix:
            puzzle = torch.zeros(config.prefix, config.hidden, dtype=torch.float64)
            puzzle[0] = weights["puzzle_emb.weights"][0]
            x = torch.cat([puzzle, x])
        x = x * config.hidden**0.5
        answer, latent = weights["H_init"].expand_as(x), weights["L_init"].expand_as(x)
        for _ in range(config.updates):
            latent = expected_layers(latent + answer + x, weights, config)
        answer = expected_layers(answer + latent, weights, config)
        seen = answer[0] if config.prefix else answer.mean(0)
        q = weights["q_head.weight"] @ seen + weights["q_head.bias"]
        for got, expected in (
            (z[at], latent),
            (y[at], answer),
            (logits[at], answer[config.prefix :] @ weights["lm_head.weight"].T),
            (verdict[at], q[0]),
        ):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # angles are binary32


@pytest.mark.parametrize("mixer", OFFICIAL)
def test_a_state_dict_of_the_authors_is_read(tmp_path, mixer):
    config = OFFICIAL[mixer]
    weights = weights_of(config)
    state = {f"_orig_mod.model.inner.{name}": weight for name, weight in weights.items()}
    state["_orig_mod.model.inner.rotary_emb.cos_cached"] = torch.zeros(97, 64)
    torch.save(state, tmp_path / "step_1")
    read, loaded = load_official(tmp_path / "step_1", "sudoku9", 81, cycles=3, updates=6)
    assert read == config
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Code(), "not a state dict of tensors"),
        ([torch.zeros(1)], "not a state dict: expected tensors by name"),
        ({"embed_tokens.embedding_weight": torch.zeros(3)}, "is missing or no matrix"),
    ],
)
def test_another_file_is_refused(tmp_path, capsys, state, said):
    torch.save(state, tmp_path / "step_1")
    with pytest.raises(ConfigError, match=said):
        load_official(tmp_path / "step_1", "sudoku9", 81, cycles=3, updates=6)
    assert "run" not in capsys.readouterr().out


def test_weights_are_kept(tmp_path):
    weights = weights_of(UNITS)
    save_weights(tmp_path / "w.safetensors", UNITS, weights)
    config, loaded = load_weights(tmp_path / "w.safetensors")
    assert config == UNITS
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("H_init"), "tensor H_init is missing"),
        (lambda w: w.update(more=torch.zeros(1)), "tensor more has no place"),
        (lambda w: w.update(L_init=torch.zeros(3)), r"L_init has shape \(3,\), expected \(24,\)"),
        (lambda w: w["L_init"].fill_(float("nan")), "L_init holds a NaN"),
    ],
)
def test_weights_of_another_shape_are_refused(tmp_path, change, said):
    weights = weights_of(UNITS)
    change(weights)
    save_weights(tmp_path / "w.safetensors", UNITS, weights)
    with pytest.raises(ConfigError, match=said):
        load_weights(tmp_path / "w.safetensors")
