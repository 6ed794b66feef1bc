"""Make a GGUF file of a larger model, for its shape alone: weights are random.

    python -m benchmarks.large_gguf LARGE.gguf

The shape is Qwen2.5-1.5B's, its 1.5 billion weights stored as in a Q4_K_M file: Q4_K, and Q6_K for
the embedding and for half of the layers' attn_v and ffn_down. Blocks are random bytes under scales
that keep values as large as a trained model's. The tokenizer is the default model's. The same seed
makes the same file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from benchmarks.peers.__main__ import default_gguf

ARCH = "qwen2"
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 28, 1536, 8960, 12, 2, 151_936
KEYS = HIDDEN // HEADS * KV_HEADS
MATRICES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KEYS, HIDDEN),
    "attn_v": (KEYS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}
UNUSED = 5  # llama.cpp's type of a token that stands for nothing

Stored = tuple[str, Kind, tuple[int, ...]]


def tensors(layers: int) -> Iterator[Stored]:
    """Yield each tensor's name, format and shape, in the file's order."""
    yield "token_embd.weight", Kind.Q6_K, (VOCABULARY, HIDDEN)
    for layer in range(layers):
        finer = _is_finer(layer, layers)
        for name, shape in MATRICES.items():
            kind = Kind.Q6_K if finer and name in ("attn_v", "ffn_down") else Kind.Q4_K
            yield f"blk.{layer}.{name}.weight", kind, shape
        for name in ("attn_q", "attn_k", "attn_v"):
            yield f"blk.{layer}.{name}.bias", Kind.F32, MATRICES[name][:1]
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", Kind.F32, (HIDDEN,)
    yield "output_norm.weight", Kind.F32, (HIDDEN,)


def _is_finer(layer: int, layers: int) -> bool:
    """Return what llama.cpp's use_more_bits does: the first and last eighth, a third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def contents(rng: np.random.Generator, name: str, kind: Kind, shape: tuple[int, ...]) -> Any:
    """Return a tensor's values, or its rows of blocks, such that a row's output is about 1."""
    if kind == Kind.F32:
        middle = 0.0 if name.endswith("bias") else 1.0
        return rng.normal(middle, 0.05, shape).astype(np.float32)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = shape
    blocks = rng.integers(0, 256, (rows * columns // values, size), np.uint8)
    # A weight's standard deviation is its factor times that of (scale * (u - middle)).
    if kind == Kind.Q4_K:
        # Eight scales and eight offsets of 6 bits, the offsets equal to the scales.
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
        factor = np.float16(columns**-0.5 / 168)
        blocks[:, 0:2] = _bytes(factor)
        blocks[:, 2:4] = _bytes(np.float16(7.5 * factor))
    else:
        blocks[:, 208:210] = _bytes(np.float16(columns**-0.5 / 1365))
    return blocks.reshape(rows, -1)


def _bytes(factor: np.float16) -> npt.NDArray[np.uint8]:
    return np.array([factor], "<f2").view(np.uint8)


def add_metadata(writer: gguf.GGUFWriter, tokenizer: Path, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(32_768)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    for key, field in gguf.GGUFReader(tokenizer).fields.items():
        if key.startswith("tokenizer."):
            value = field.contents()
            if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
                value = _fill_up(key, value)
            writer.add_key_value(key, value, field.types[0])


def _fill_up(key: str, known: list[Any]) -> list[Any]:
    """Give every row of the embedding a token, as llama.cpp's converter does."""
    missing = range(len(known), VOCABULARY)
    return known + [f"[PAD{i}]" if key.endswith("tokens") else UNUSED for i in missing]


def write(path: Path, layers: int = LAYERS, seed: int = 0) -> None:
    """Write the file, holding one tensor in memory at a time."""
    writer = gguf.GGUFWriter(path, ARCH)
    with tempfile.TemporaryDirectory() as folder:
        add_metadata(writer, default_gguf(Path(folder)), layers)
    for name, kind, shape in tensors(layers):
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape)) // values * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor in tensors(layers):
        writer.write_tensor_data(contents(rng, *tensor))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the file to write: 1.1 GB")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer make a smaller file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.layers, args.seed)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
