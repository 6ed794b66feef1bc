"""A profile's side of a step: a model in memory, and from a batch to logits."""
