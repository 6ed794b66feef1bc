"""Tiny recursive models: an answer that is improved in a loop until it holds."""
