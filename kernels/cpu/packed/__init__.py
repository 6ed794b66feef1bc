"""Weights that stay in the blocks of a GGUF file (docs/arithmetic.md, rule 1q)."""
