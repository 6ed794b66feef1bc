"""What must hold in a process before kernels may run in it; cheap enough for every start."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path

import numpy as np

from detinfer.errors import ConfigError

SAFE_LAYERS = ("omp", "tbb")


def check_environment() -> None:
    """Refuse an environment that would move bits or crash.

    Call it in the thread that will compute, under ``contract_rounding``.

    Raises:
        ConfigError: a foreign ``detinfer``, wrong rounding or an unsafe threading layer.
    """
    check_package()
    check_rounding()
    check_threading_layer()


def check_package() -> None:
    """Refuse a ``detinfer`` that is not ours alone: the PyPI name is somebody else's.

    Raises:
        ConfigError: naming the other package or folder, and how to be rid of it.
    """
    try:
        version = importlib.metadata.version("detinfer")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise ConfigError(
            f"environment: another package named detinfer ({version}) is installed and shares our "
            "files: pip uninstall -y detinfer, then pip install --force-reinstall --no-deps "
            "detinfer-server"
        )
    ours = Path(__file__).resolve().parent
    for entry in sys.modules["detinfer"].__path__:
        folder = Path(entry)
        if folder.is_dir() and folder.resolve() != ours:
            raise ConfigError(f"environment: another detinfer at {folder}, expected only {ours}")


def check_rounding() -> None:
    """Refuse a calling thread that does not round to nearest and keep subnormal numbers.

    Raises:
        ConfigError: it does not, on a machine whose control word we do not know how to set.
    """
    one, half = np.array([1, 1 + 2.0**-23], np.float32), np.float32(0.5)
    hair = np.array([2.0**-30, -(2.0**-30)], np.float32)  # up moves the first, down the second
    if not np.array_equal(one + hair, one):
        raise ConfigError(
            "environment: this process does not round to nearest, which changes bits: call "
            "fesetround(FE_TONEAREST)"
        )
    # A normal product that is subnormal shows FTZ; a subnormal factor read as zero shows DAZ.
    product = np.array([2.0**-126], np.float32) * half
    back = np.array([1], np.int32).view(np.float32) * np.float32(2.0**126)
    if product[0].view(np.int32) == 0 or back[0] == 0:
        raise ConfigError(
            "environment: this process flushes subnormal numbers to zero, which changes bits: "
            "start without -ffast-math libraries, or call torch.set_flush_denormal(False)"
        )


def check_threading_layer() -> str:
    """Numba must run parallel kernels on OpenMP or TBB.

    Returns:
        The layer that will be used, or already is.

    Raises:
        ConfigError: only ``workqueue`` is left, which is slow and aborts on concurrent entry.
    """
    import numba

    layer = threading_layer()
    if layer in SAFE_LAYERS:
        return layer
    if layer == numba.config.THREADING_LAYER:
        raise ConfigError(
            f"environment: NUMBA_THREADING_LAYER is {layer!r}, expected omp or tbb: unset it"
        )
    raise ConfigError(
        "environment: Numba finds neither OpenMP nor TBB and would use workqueue: install the "
        "system's OpenMP library (apt-get install libgomp1)"
    )


def threading_layer() -> str:
    """Return the layer Numba uses, or will choose when the first parallel kernel runs."""
    import numba

    try:
        return str(numba.threading_layer())
    except ValueError:  # nothing has run in parallel yet
        pass
    wanted = str(numba.config.THREADING_LAYER)
    if wanted in (*SAFE_LAYERS, "workqueue"):
        candidates = [wanted]
    else:
        candidates = list(numba.config.THREADING_LAYER_PRIORITY)
    for layer in candidates:
        if layer == "workqueue" or _importable(f"numba.np.ufunc.{layer}pool"):
            return layer
    return "workqueue"


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
