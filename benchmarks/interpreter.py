"""Triton's interpreter, made to compute what the machine code would.

As shipped it cannot show equality of bits: its ``tl.dot`` is NumPy's matmul, whose rows depend on
how many there are, and takes bfloat16 for integers; ``tl.fma`` rounds twice; casts to bfloat16
truncate. ``install()`` puts the arithmetic of docs/arithmetic.md in their place.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime import interpreter

from detinfer.kernels import reference, reference_native

core = reference_native.HOPPER  # the tensor core that tl.dot models


def install() -> None:
    """Patch the interpreter for the rest of the process.

    Raises:
        RuntimeError: ``TRITON_INTERPRET=1`` is not set, so that kernels would be compiled.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET: expected 1, set before any kernel is imported")
    builder = interpreter.InterpreterBuilder
    if builder.create_dot is _dot:
        return
    builder.create_dot = _dot
    builder.create_fma = _fma
    builder.create_exp2 = lambda self, x: _like(x, reference_native.exp2(x.data))
    builder.cast_impl = _cast
    builder.create_fp_to_fp = lambda self, x, to, rounding: _cast(self, x, to)
    _patch_language_once()
    call = interpreter.GridExecutor.__call__

    def quiet(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Infinities and NaN are results here; a kernel is no op that a dispatch mode should see.
        with np.errstate(all="ignore"), _disable_current_modes():
            return call(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = quiet


def _patch_language_once() -> None:
    """Swap ``tl``'s functions for the interpreter's for good.

    It does so anew at every call of a kernel or of a function in one, which took most of the time.
    """

    def everything() -> None: ...

    scope = interpreter._patch_lang(FunctionType(everything.__code__, {"tl": tl, "core": tl.core}))
    scope._changes.clear()  # nothing to restore
    interpreter._patch_lang = lambda fn: scope


def _like(x: Any, data: Any) -> Any:
    return interpreter.TensorHandle(data, x.dtype.scalar)


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, imprecise: int) -> Any:
    kind = str(a.dtype.scalar)
    if kind == "fp32" and "IEEE" not in str(input_precision):
        raise ValueError(f"tl.dot of fp32: got input_precision {input_precision}, expected ieee")
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[kind]
    return _like(d, reference_native.dot(_wide(a), _wide(b), d.data, dtype, core))


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    return _like(z, reference.fma(x.data, y.data, z.data))


def _cast(self: Any, x: Any, to: Any) -> Any:
    """Return a cast that rounds to nearest even, subnormals kept."""
    source, target = x.dtype.scalar, to.scalar
    if target == tl.bfloat16:
        if source not in (tl.float32, tl.float16, tl.bfloat16):
            raise ValueError(f"cast to bfloat16: got {source}, expected a float")
        data = np.ascontiguousarray(_wide(x), np.float32)
        rounded = torch.from_numpy(data).to(torch.bfloat16)
        return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), target)
    dtype = interpreter._get_np_dtype(target)
    return interpreter.TensorHandle(np.asarray(_wide(x)).astype(dtype), target)


def _wide(x: Any) -> Any:
    """Values as NumPy holds them; bfloat16, kept as 16-bit integers there, as binary32."""
    if x.dtype.scalar != tl.bfloat16:
        data = x.data
        return data.astype(np.float32) if data.dtype == np.float16 else data
    return (x.data.astype(np.uint32) << 16).view(np.float32)
