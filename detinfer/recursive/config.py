"""The shape of a tiny recursive model (arXiv 2510.04871)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mixer = Literal["attention", "units", "mlp"]
State = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class RecursiveConfig:
    """What the weights of a tiny recursive model are computed as.

    Attributes:
        task: whose boards it reads; a name of tasks.TASKS.
        vocab: token ids.
        cells: of a board.
        hidden: width of a cell's state.
        mixer: how cells hear of one another: ``attention`` of all to all, ``units`` for heads that
            attend within a unit of the task, as a row or a box (an equal share of them for each
            kind), ``mlp`` for a SwiGLU over the cells.
        heads: of attention.
        intermediate: width of the SwiGLU over a cell's state.
        mixed: width of the SwiGLU over cells.
        layers: of the one network.
        cycles: latent recursions of a step (T).
        updates: of the latent state before the answer's (n).
        prefix: tokens before the first cell; the halting head reads the first of them, or the mean
            over cells where there is none.
        verdicts: outputs of the halting head; the first counts.
    """

    task: str
    vocab: int
    cells: int
    hidden: int
    mixer: Mixer
    heads: int = 0
    intermediate: int = 0
    mixed: int = 0
    layers: int = 2
    cycles: int = 2
    updates: int = 3
    prefix: int = 0
    verdicts: int = 1

    def shapes(self) -> State:
        """Every tensor's shape by name, as in the authors' state dicts."""
        wide, tokens = self.hidden, self.prefix + self.cells
        shapes: State = {
            "embed_tokens.embedding_weight": (self.vocab, wide),
            "lm_head.weight": (self.vocab, wide),
            "q_head.weight": (self.verdicts, wide),
            "q_head.bias": (self.verdicts,),
            "H_init": (wide,),
            "L_init": (wide,),
        }
        if self.prefix:
            shapes["puzzle_emb.weights"] = (1, wide)
        for index in range(self.layers):
            layer = f"L_level.layers.{index}."
            if self.mixer == "mlp":
                shapes[layer + "mlp_t.gate_up_proj.weight"] = (2 * self.mixed, tokens)
                shapes[layer + "mlp_t.down_proj.weight"] = (tokens, self.mixed)
            else:
                shapes[layer + "self_attn.qkv_proj.weight"] = (3 * wide, wide)
                shapes[layer + "self_attn.o_proj.weight"] = (wide, wide)
            shapes[layer + "mlp.gate_up_proj.weight"] = (2 * self.intermediate, wide)
            shapes[layer + "mlp.down_proj.weight"] = (wide, self.intermediate)
        return shapes
