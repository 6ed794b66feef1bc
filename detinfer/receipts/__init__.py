"""Receipts: what a deterministic answer was made of, so that anybody can make it again."""
