"""GGUF files as models: each is converted once to a folder of safetensors."""
