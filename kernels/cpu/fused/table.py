"""What the fused step reads of a model: a row of addresses a layer, and what all layers share."""

from __future__ import annotations

# A linear layer in the table: address of its panels, its tile (FLOAT32, BFLOAT16, or the address of
# packed/tile.py's code), bytes of a panel, bias address (0: none).
LINEAR = ("address", "tile", "panel", "bias")
SIZE, TILE = len(LINEAR), LINEAR.index("tile")
FLOAT32, BFLOAT16 = 0, 1
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
# A norm's weight address; 0 where the layer has no such norm.
NORMS = ("input", "q", "k", "post_attention", "pre_mlp", "post_mlp")
OTHERS = ("window", "cos", "sin", "k_cache", "v_cache")
COLUMNS = tuple(
    [f"{name}.{part}" for name in LINEARS for part in LINEAR]
    + [f"{name}_norm" for name in NORMS]
    + list(OTHERS)
)
# Where each begins in a layer's row.
Q, K, V, OUT, GATE, UP, DOWN = (COLUMNS.index(f"{name}.address") for name in LINEARS)
INPUT_NORM, Q_NORM, K_NORM, POST_ATTENTION, PRE_MLP, POST_MLP = (
    COLUMNS.index(f"{name}_norm") for name in NORMS
)
WINDOW, COS, SIN, K_CACHE, V_CACHE = (COLUMNS.index(name) for name in OTHERS)

# What all layers share, as the step unpacks it: integers, then binary32.
DIMS = ("hidden", "heads", "kv_heads", "head_dim", "rotary", "inner", "vocab", "norm_variant",
        "wide_qk_norm", "gelu", "embedding", "embedding_row", "embedding_panel", "final_norm",
        "head", "head_tile", "head_panel", "cache_size")  # fmt: skip
FACTORS = ("eps", "scale", "attention_softcap", "embedding", "residual", "logits_divisor",
           "logits_factor", "final_softcap")  # fmt: skip
