"""Making a Hugging Face model run on our kernels, in place, leaf by leaf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.activations import is_activation, patch_activation
from detinfer.models.attention import AttentionCall, record_attention
from detinfer.models.context import ForwardContext, forward_context
from detinfer.models.leaves import (
    LeafWeight,
    PackedConv1D,
    PackedEmbedding,
    PackedHead,
    PackedLinear,
    is_placeholder,
    placeholder,
)
from detinfer.models.moe import BLOCKS, is_experts, patch_experts
from detinfer.models.naming import naming_modules
from detinfer.models.norms import is_norm, patch_norm
from detinfer.models.rope import TableRotary, is_rotary, patch_rotary
from detinfer.models.routing import ROUTERS, patch_router
from detinfer.models.swap import swap_base, swap_class
from detinfer.ops import LayerCacheSpec


@dataclass(frozen=True)
class PatchReport:
    """What the runner needs to know about a patched model.

    Attributes:
        calls: the attention call of each layer, by layer index.
        rope_pins: what each rotary embedding's frequencies were pinned to, for the fingerprint.
    """

    calls: list[AttentionCall]
    rope_pins: dict[str, str]

    @property
    def rope(self) -> str:
        """The pins as one line, for the fingerprint."""
        return ", ".join(f"{name}={pin}" for name, pin in sorted(self.rope_pins.items())) or "none"

    @property
    def cache_specs(self) -> list[LayerCacheSpec]:
        """What each attention layer keeps of a token."""
        return [call.spec for call in self.calls]


def patch_model(
    model: Any,
    activation_dtype: torch.dtype,
    max_model_len: int,
    allow_fast: bool,
    packed: Mapping[str, Any] = MappingProxyType({}),
) -> PatchReport:
    """Swap every leaf of a causal language model for ours and pack its weights.

    Weights of linear layers and embeddings are packed once and their storage is freed; tied modules
    share one packed weight. Other parameters and buffers become ``activation_dtype``, as if the
    model had been loaded in it. What is not known here stays: the audit refuses it if it computes.

    Args:
        model: loaded with ``attn_implementation="detinfer"``.
        activation_dtype: dtype between ops.
        max_model_len: longest sequence served; length of the rotary tables.
        allow_fast: whether fast steps may make a stock copy of the weights.
        packed: weights that are packed already, by the name of a parameter that stands for them;
            of stacked experts a list.

    Raises:
        UnsupportedModelError: a module whose bits cannot be guaranteed, by name.
    """
    _refuse_by_config(model)
    loaded_dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    model.eval()
    model.requires_grad_(False)
    model.config.pad_token_id = None  # some forwards search every step's ids for it, only to warn
    packer = _Packer(model, activation_dtype, allow_fast, packed)
    pins: dict[str, str] = {}
    verified: set[Any] = set()
    for name, module in list(model.named_modules()):
        if is_rotary(module):
            pins |= patch_rotary(module, name, max_model_len)
        elif is_norm(module):
            patch_norm(module, name, verified)
        elif is_activation(module):
            patch_activation(module)
        elif is_experts(module):
            patch_experts(module, name, activation_dtype, allow_fast, packer.take)
        else:
            packer.patch(module, name)
    packer.patch_head(model)
    packer.check_all_taken()
    _cast_rest(model, loaded_dtype, activation_dtype)
    if ops.device().type != "cpu":
        _move(model, ops.device())
    return PatchReport(_probe_layers(model), pins)


class _Packer:
    """Packs weights; one per model, since tied parameters are found by identity."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, allow_fast: bool, packed: Mapping[str, Any]
    ) -> None:
        self._dtype, self._allow_fast = dtype, allow_fast
        uses = Counter(
            id(parameter)
            for module in model.modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )
        # Holds only tied parameters alive, so that the others' memory goes as they are packed.
        self._tied = {id(p): p for p in model.parameters() if uses[id(p)] > 1}
        self._leaves: dict[int, LeafWeight] = {}
        # By what stands for them in the model, which is kept alive: an id is one parameter's.
        held = {name: model.get_parameter(name) for name in packed}
        self._packed = {id(p): (name, p, packed[name]) for name, p in held.items()}

    def patch(self, module: nn.Module, name: str) -> None:
        """Swap a linear layer, embedding, router or block with one; leave anything else."""
        own = type(module).__name__
        if own in ROUTERS:
            assert isinstance(module.weight, nn.Parameter)
            patch_router(module, name, self._leaf(module.weight.data))
            module.weight = placeholder(module.weight.shape, self._dtype)
        elif own in BLOCKS:
            swap_class(module, BLOCKS[own])
        elif isinstance(module, nn.Linear):
            self._pack(module)
            swap_base(module, PackedLinear)
        elif isinstance(module, nn.Embedding):
            self._patch_embedding(module, name)
        elif type(module) is Conv1D:
            self._pack(module, transposed=True)
            swap_class(module, PackedConv1D)

    def patch_head(self, model: Any) -> None:
        """Turn the packed output layer into the head, which takes over the final softcap."""
        head: Any = model.get_output_embeddings()
        if not isinstance(head, PackedLinear):
            raise UnsupportedModelError(
                f"{type(model).__name__}: output layer is {type(head).__name__}, expected nn.Linear"
            )
        softcap = getattr(model.config, "final_logit_softcapping", None)
        head.__class__ = PackedHead
        head.softcap = softcap  # type: ignore[assignment]
        if softcap is not None:
            model.config.final_logit_softcapping = None

    def _patch_embedding(self, module: nn.Embedding, name: str) -> None:
        if module.max_norm is not None:
            raise UnsupportedModelError(
                f"{name} (Embedding): max_norm changes the table as it is read"
            )
        self._pack(module)
        swap_base(module, PackedEmbedding)
        scale = getattr(module, "scalar_embed_scale", None)
        if scale is not None:  # the buffer was rounded to the checkpoint's dtype when it was made
            module.embed_scale = torch.tensor(scale, dtype=self._dtype)

    def take(self, weight: nn.Parameter) -> Any | None:
        """Return what is packed already of a parameter, to whom it is then; None for nothing."""
        _, _, packed = self._packed.pop(id(weight), (None, None, None))
        return packed

    def check_all_taken(self) -> None:
        """Refuse blocks whose parameter is in none of the layers that compute with them."""
        for name, _, _ in self._packed.values():
            raise UnsupportedModelError(
                f"{name}: its quantised blocks cannot stay packed there: use --weights dequantized"
            )

    def _leaf(self, weight: torch.Tensor) -> LeafWeight:
        return LeafWeight(ops.pack(weight, self._dtype), self._allow_fast)

    def _pack(self, module: nn.Module, transposed: bool = False) -> None:
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        leaf = self._leaves.get(id(weight)) if id(weight) in self._tied else None
        if leaf is None:
            packed = None if transposed else self.take(weight)
            if packed is not None:
                leaf = LeafWeight(packed, self._allow_fast)
            else:
                leaf = self._leaf(weight.data.T if transposed else weight.data)
            if id(weight) in self._tied:
                self._leaves[id(weight)] = leaf
        module.leaf = leaf  # type: ignore[assignment]
        module.weight = placeholder(weight.shape, self._dtype)


def _refuse_by_config(model: Any) -> None:
    """Kinds of model that are refused by name, because no op of theirs would give them away."""
    config = model.config.get_text_config()
    reasons = {
        "layers share keys and values": getattr(config, "num_kv_shared_layers", 0),
        "ALiBi position biases": getattr(config, "alibi", False),
        "an encoder": getattr(config, "is_encoder_decoder", False),
        "quantised weights": getattr(config, "quantization_config", None),
        "bidirectional attention": getattr(config, "use_bidirectional_attention", None),
    }
    unknown = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if unknown:
        reasons[f"layers of type {', '.join(sorted(unknown))}"] = True
    for reason, found in reasons.items():
        if found:
            raise UnsupportedModelError(f"{type(model).__name__}: {reason} (not supported yet)")


def _cast_rest(model: Any, loaded: torch.dtype, dtype: torch.dtype) -> None:
    """Cast what was not packed, as loading in ``dtype`` would; never what is kept in binary32."""
    kept = {
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    }
    for name, module in model.named_modules():
        if isinstance(module, TableRotary) or kept.intersection(name.split(".")):
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype == loaded and key not in kept:
                module._parameters[key] = nn.Parameter(parameter.to(dtype), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype == loaded and key not in kept:
                module._buffers[key] = buffer.to(dtype)


def _move(model: nn.Module, device: torch.device) -> None:
    """Move what was not packed; placeholders are made anew, since a copy would fill their shape."""
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and is_placeholder(parameter):
                module._parameters[key] = placeholder(parameter.shape, parameter.dtype, device)
            elif parameter is not None:
                module._parameters[key] = nn.Parameter(parameter.to(device), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
        if isinstance(module, TableRotary):
            module.rope_tables = {t: table.to(device) for t, table in module.rope_tables.items()}


def _probe_layers(model: Any) -> list[AttentionCall]:
    """Return how each layer calls attention, seen from one token's pass without attention."""
    one = torch.zeros(1, 1, dtype=torch.int64, device=ops.device())
    with (
        torch.inference_mode(),
        forward_context(ForwardContext(None, None)),
        record_attention() as calls,
        naming_modules(model) as where,
    ):
        try:
            model(
                input_ids=one,
                position_ids=one,
                use_cache=False,
                logits_to_keep=one[0],
            )
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever an architecture without an attention interface does
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UnsupportedModelError(
                f"{where()}: its forward fails without a mask and a cache of its own "
                f"({type(error).__name__}: {reason})"
            ) from error
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise UnsupportedModelError(
            f"{type(model).__name__}: attention ran in layers {sorted(c.layer for c in calls)}, "
            f"expected each of {layers} once"
        )
    return sorted(calls, key=lambda call: call.layer)
