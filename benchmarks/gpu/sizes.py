"""The models whose shapes are measured, and the sizes of a full and of a smoke run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A real model's configuration, as far as shapes and arithmetic go."""

    name: str
    architecture: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    layers: int
    tied: bool = False
    rope: tuple[tuple[str, Any], ...] = (("rope_type", "default"), ("rope_theta", 1e6))
    eps: float = 1e-6
    length: int = 40960

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    def linears(self) -> dict[str, tuple[int, int]]:
        """(n, k) of each of its weights, as the fused plan joins them."""
        width = self.heads * self.head_dim
        return {
            "qkv": (width + 2 * self.kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, width),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }

    def config(self) -> Any:
        """For transformers."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.architecture](
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.length,
            rms_norm_eps=self.eps,
            rope_parameters=dict(self.rope),
            tie_word_embeddings=self.tied,
            bos_token_id=1,
            eos_token_id=2,
        )


_LLAMA3_ROPE = (
    ("rope_type", "llama3"),
    ("rope_theta", 5e5),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 8192),
)
QWEN3_8B = Model("Qwen3-8B", "qwen3", 4096, 12288, 32, 8, 128, 151936, 36)
LLAMA_8B = Model(
    "Llama-3.1-8B", "llama", 4096, 14336, 32, 8, 128, 128256, 32,
    rope=_LLAMA3_ROPE, eps=1e-5, length=131072,
)  # fmt: skip
QWEN3_1_7B = Model("Qwen3-1.7B", "qwen3", 2048, 6144, 16, 8, 128, 151936, 28, tied=True)
SMOLLM2 = Model("SmolLM2-135M", "llama", 576, 1536, 9, 3, 64, 49152, 30, tied=True)

TINY_QWEN3 = Model("tiny-qwen3", "qwen3", 48, 40, 6, 2, 16, 131, 2, tied=True, length=256)
TINY_LLAMA = Model("tiny-llama", "llama", 48, 32, 3, 1, 16, 96, 1, length=256)


@dataclass(frozen=True)
class Sizes:
    """How much a run does.

    Attributes:
        bits: models whose weights' configurations are compared.
        speed: models whose kernels are timed.
        small: the model of the load test.
        large: the model of the slowdown.
        other: a further model, decode only.
        rows: row counts of the timed linears.
        swept: those at which other configurations are timed too.
        depths: K of the comparison with the tensor core's model.
        kind_rows: rows of each kind of data in the linear's bit test.
        checked: most rows compared with a NumPy reference.
        sequence: tokens of the attention bit test.
        contexts: (sequences, keys each) of the timed decode attention.
        prompts: (sequences, tokens each) of the timed prefill attention.
        small_rows: rows of the timed small kernels.
        generations: of the load test.
        tokens: of each of them.
        budgets: of a step's tokens, one drawn for each step.
        chunks: of a prompt, likewise.
        sequences: of the published experiment.
        lengths: shortest and longest answer there.
        prompt_lengths: likewise of prompts.
        limits: ``max_num_seqs`` it runs with; the first is judged.
        batches: of the decode latency.
        decode_tokens: steps of the decode latency.
        decode_prompt: tokens cached before them.
        throughput: sequences, prompt tokens, answer tokens.
        repeats: interleaved, of each timing.
        deviation: of the random weights.
        cache_bytes: KV pages of the load test and of the slowdown.
        max_model_len: of the engines.
    """

    bits: tuple[Model, ...]
    speed: tuple[Model, ...]
    small: Model
    large: Model
    other: Model
    rows: tuple[int, ...]
    swept: tuple[int, ...]
    depths: tuple[int, ...]
    kind_rows: int
    checked: int
    sequence: int
    contexts: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, int], ...]
    small_rows: tuple[int, ...]
    generations: int
    tokens: int
    budgets: tuple[int, ...]
    chunks: tuple[int | None, ...]
    sequences: int
    lengths: tuple[int, int]
    prompt_lengths: tuple[int, int]
    limits: tuple[int, ...]
    batches: tuple[int, ...]
    decode_tokens: int
    decode_prompt: int
    throughput: tuple[int, int, int]
    repeats: int
    deviation: float
    cache_bytes: tuple[int, int]
    max_model_len: int


FULL = Sizes(
    bits=(QWEN3_8B, LLAMA_8B, QWEN3_1_7B, SMOLLM2),
    speed=(QWEN3_8B, LLAMA_8B),
    small=QWEN3_1_7B,
    large=QWEN3_8B,
    other=LLAMA_8B,
    rows=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    swept=(1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192),
    depths=(16, 64, 4096),
    kind_rows=52,
    checked=8,
    sequence=1300,
    contexts=((1, 1024), (1, 8192), (1, 32768), (8, 1024), (8, 8192), (8, 32768),
              (64, 1024), (64, 8192), (256, 1024)),
    prompts=((1, 1024), (1, 2048), (1, 4096), (1, 8192), (8, 1024)),
    small_rows=(1, 64, 1024, 8192),
    generations=1000,
    tokens=24,
    budgets=(1, 17, 300, 2048, 8192),
    chunks=(None, 1, 16, 33, 200),
    sequences=1000,
    lengths=(90, 110),
    prompt_lengths=(20, 40),
    limits=(1000, 256),
    batches=(1, 8, 64),
    decode_tokens=48,
    decode_prompt=128,
    throughput=(64, 1024, 1024),
    repeats=5,
    deviation=0.02,
    cache_bytes=(8 << 30, 48 << 30),
    max_model_len=4096,
)  # fmt: skip

SMOKE = Sizes(
    bits=(TINY_LLAMA,),
    speed=(TINY_LLAMA,),
    small=TINY_QWEN3,
    large=TINY_LLAMA,
    other=TINY_LLAMA,
    rows=(1, 3),
    swept=(3,),
    depths=(16, 64),
    kind_rows=2,
    checked=2,
    sequence=140,
    contexts=((2, 65),),
    prompts=((1, 40),),
    small_rows=(2,),
    generations=6,
    tokens=3,
    budgets=(17, 64),
    chunks=(None, 16, 33),
    sequences=3,
    lengths=(2, 3),
    prompt_lengths=(3, 5),
    limits=(3, 2),
    batches=(1, 2),
    decode_tokens=2,
    decode_prompt=4,
    throughput=(2, 6, 2),
    repeats=1,
    deviation=0.2,  # or sums are too small for a rounding to show
    cache_bytes=(1 << 20, 1 << 20),
    max_model_len=256,
)
