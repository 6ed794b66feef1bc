"""A whole step of a Llama-like model in one call."""
