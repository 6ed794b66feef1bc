"""Finding, loading and adapting Hugging Face models."""
