"""What a step must do at least: bytes read and multiply-adds, and the time they take a machine.

Counted are matrices, in the bytes that are stored, and the keys and values of the cache, each read
once a step; and the multiply-adds of linear layers and attention. All else is small, or waste.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from benchmarks.limits import Limits

STORED = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1}  # U8: bytes of GGUF blocks
KV_ITEM = 4  # bytes of a cached number: binary32


class Work(NamedTuple):
    """Bytes, and multiply-adds of integers and of binary32 numbers."""

    bytes: float
    int8: float
    float32: float

    def seconds(self, limits: Limits) -> float:
        """Return the least time: memory and arithmetic overlap, two kinds of arithmetic do not."""
        arithmetic = self.int8 / limits.int8 + self.float32 / limits.float32
        return max(self.bytes / limits.bandwidth, arithmetic)


@dataclass(frozen=True)
class Model:
    """A decoder of Llama's pattern.

    Attributes:
        layer_weights: numbers in the matrices of all layers.
        head_weights: numbers in the matrix that makes logits.
        bytes: of both, as stored.
        packed: whether they are multiplied as integers.
        kv_bytes: what a token leaves in the cache.
        attention: multiply-adds of a token for each that it sees.
    """

    layer_weights: int
    head_weights: int
    bytes: int
    packed: bool
    kv_bytes: int
    attention: int

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Read a model's shapes and the bytes of its matrices from its folder."""
        config = json.loads((folder / "config.json").read_text())
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim") or hidden // heads
        matrices = 2 * (heads + kv_heads) * size + 3 * config["intermediate_size"]
        stored, packed = 0, False
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    part = tensors.get_slice(name)
                    shape, dtype = part.get_shape(), part.get_dtype()
                    lookup = "embed_tokens" in name and not config["tie_word_embeddings"]
                    if len(shape) == 2 and not lookup:
                        stored += shape[0] * shape[1] * STORED[dtype]
                        packed |= dtype == "U8"
        return cls(
            layer_weights=layers * hidden * matrices,
            head_weights=config["vocab_size"] * hidden,
            bytes=stored,
            packed=packed,
            kv_bytes=layers * 2 * kv_heads * size * KV_ITEM,
            attention=layers * 2 * heads * size,
        )

    def decode(self, batch: int, context: float) -> Work:
        """Return the work of a step of ``batch`` tokens, each of which sees ``context``."""
        linear = batch * (self.layer_weights + self.head_weights)
        seen = batch * context
        return self._work(1, linear, seen * self.kv_bytes, seen * self.attention)

    def prefill(self, batch: int, prompt: int, step: int) -> Work:
        """Return the work of ``batch`` prompts in steps of ``step`` tokens, logits of the last."""
        steps = -(-batch * prompt // step)
        linear = batch * (prompt * self.layer_weights + self.head_weights)
        # A chunk of a prompt reads what the ones before have left; then as much is written.
        ends = [*range(step, prompt, step), prompt]
        seen = batch * prompt * (prompt + 1) // 2
        return self._work(steps, linear, batch * sum(ends) * self.kv_bytes, seen * self.attention)

    def kv_share(
        self, near: tuple[float, float], far: tuple[float, float], limits: Limits
    ) -> float:
        """Return the share of the bandwidth at which a sequence's cache is read.

        Args:
            near: tokens of context, and the seconds that a step took with them.
            far: the same of a longer one; what the step took longer, it read.
            limits: the machine's.
        """
        read = self.kv_bytes * (far[0] - near[0])
        return read / (far[1] - near[1]) / limits.bandwidth

    def _work(self, steps: int, linear: float, kv_bytes: float, attention: float) -> Work:
        integers = linear if self.packed else 0
        return Work(steps * self.bytes + kv_bytes, integers, linear - integers + attention)
