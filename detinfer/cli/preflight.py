"""What a start would refuse, told in a moment: nothing here imports torch, transformers, Numba."""

from __future__ import annotations

import ctypes
import os
import sys

from detinfer.config import EngineConfig
from detinfer.errors import ConfigError
from detinfer.folders import check_folders
from detinfer.machine import cpu_threads

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def check_start(config: EngineConfig) -> None:
    """Judge settings, cheapest first; loading judges them again, with all there is to know.

    Raises:
        ConfigError: a device, profile or number of threads that this machine does not have, or no
            folder to write to.
        ModelLoadError: there is no such model, or its files are damaged.
        UnsupportedModelError: a kind of model, or of file, that is not supported; named.
    """
    resolved = config.resolve()
    if os.environ.get("TRITON_INTERPRET") != "1":  # kernels in the interpreter run anywhere
        if resolved.device == "cuda":
            _check_gpu()
        elif resolved.profile == "native":
            raise ConfigError("numerics: got 'native' with device 'cpu', expected device cuda")
    cpu_threads(config.threads)
    check_folders()
    from detinfer.checkpoint.loader import check_model

    check_model(config.model, resolved.weights, resolved.quantize)


def _check_gpu() -> None:
    import importlib.metadata  # a third of the time that every command's start takes

    try:
        build = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    if build.endswith("+cpu"):
        raise ConfigError(
            f"device: got 'cuda', but the PyTorch installed is {build}, a build for CPUs: install "
            "one for CUDA, or leave --device out"
        )
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise ConfigError(
            f"device: got 'cuda', but there is no NVIDIA driver here ({_DRIVER} is missing): "
            "install it, or leave --device out"
        ) from None
