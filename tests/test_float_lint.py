"""Where bits matter nothing may call a function whose last bit depends on the CPU or a library.

NumPy and PyTorch choose their code for exp, sin, sums and products by instruction set, and libm's
changes with its version. The contract's own functions are in ``detinfer.kernels`` and
``detinfer.ops``. A call that no promised bit depends on is in ALLOWED, with the reason.
"""

import ast
from pathlib import Path

import pytest

import detinfer

ROOT = Path(detinfer.__file__).resolve().parent
# Never on the way from a request to its bits.
LEFT_OUT = (
    *("server/", "check/", "compile_audit/", "testing.py"),
    *("kernels/triton/", "kernels/reference"),
    *("recursive/train", "recursive/torch_kernels.py"),  # PyTorch's kernels on purpose
)

TRANSCENDENTAL = {
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "logsumexp", "pow"),
    *("power", "float_power", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arcsin", "arccos"),
    *("arctan", "arctan2", "cbrt", "hypot", "erf", "erfc", "gamma", "lgamma", "rsqrt"),
    *("sigmoid", "softmax", "log_softmax", "silu", "gelu", "softplus", "logistic"),
}
SUMS = {
    *("sum", "nansum", "mean", "average", "std", "var", "dot", "vdot", "inner", "outer", "einsum"),
    *(
        "tensordot",
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "trace",
        "norm",
        "prod",
        "trapezoid",
        "convolve",
    ),
    *("linear", "layer_norm", "rms_norm", "scaled_dot_product_attention", "baddbmm", "addbmm"),
}
BANNED = TRANSCENDENTAL | SUMS
# Modules and objects of ours, whose functions are the contract's.
OURS = {
    *("ops", "elementary", "_logits", "_matmul", "_norms", "matmul", "norms"),
    *("leaf", "self.leaf", "weight", "_kernels()", "kernels", "self.kernels"),
}

FAST = "the fast mode's own"
SIZES = "integers: sizes"
ALLOWED = {
    ("models/attention", "_eager", "@"): FAST,
    ("models/attention", "_eager", "scores.softmax"): FAST,
    ("models/attention", "_eager", "torch.cat().softmax"): FAST,
    ("models/attention", "_eager", "torch.tanh"): FAST,
    ("models/attention", "_stock_attention", "F.scaled_dot_product_attention"): FAST,
    ("models/leaves", "linear", "F.linear"): FAST,
    ("runner/native_fused", "_product", "F.linear"): FAST,
    ("models/routing", "_softmax", "x.softmax"): FAST,
    ("checkpoint/gguf/convert", "_main_dtype", "np.prod"): SIZES,
    ("checkpoint/gguf/file", "_check_places", "np.prod"): SIZES,
    ("checkpoint/quantized_folder", "_plan", "math.prod"): SIZES,
    ("checkpoint/weight_file", "_parse", "np.prod"): SIZES,
    ("checkpoint/weight_file", "write_weights", "np.prod"): SIZES,
    ("backends/portable_cache", "_zeros", "math.prod"): SIZES,
    ("engine/solver_host", "_about", "math.prod"): SIZES,
    ("kernels/cpu/attention_work", "work_items", "parts.sum"): SIZES,
    ("logs", "write", "log.log"): "a line of the log",
    ("models/norms", "_verify", "().float().mean"): "a formula compared at load, with tolerance",
    ("models/rope", "_layout", "angles.cos"): "a layout compared at load, with tolerance",
    ("models/rope", "_layout", "angles.sin"): "a layout compared at load, with tolerance",
    ("models/rope_frequencies", "_longrope", "mpmath.log"): "integers inside: no CPU decides it",
    ("models/rope_frequencies", "dimension_of", "mpmath.log"): "integers inside",
    ("models/rope_frequencies", "magnitude", "mpmath.log"): "integers inside",
}


def _written(node):
    """``a.b().c`` of an expression, arguments left out."""
    if isinstance(node, ast.Attribute):
        return f"{_written(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_written(node.func)}()"
    return node.id if isinstance(node, ast.Name) else "()"


def lint(source):
    """(function, what is called) of every banned call and matrix product in a module."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in BANNED and _written(node.func.value) not in OURS:
                found.append((function, _written(node.func)))
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found.append((function, "@"))
        elif isinstance(node, ast.ImportFrom) and node.module in ("math", "numpy", "torch"):
            found.extend(("import", a.name) for a in node.names if a.name in BANNED)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


def modules():
    """Every module of the package on the way from a request to its bits."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(LEFT_OUT):
            yield name.removesuffix(".py"), path
    kernels = (ROOT / "kernels").resolve() / "cpu"
    for path in sorted(kernels.rglob("*.py")):
        yield f"kernels/cpu/{path.relative_to(kernels).with_suffix('')}", path


def problems():
    return {(name, *call) for name, path in modules() for call in lint(path.read_text())}


def test_no_bit_comes_from_a_function_that_follows_the_cpu():
    assert {one: ALLOWED.get(one, "not allowed") for one in problems()} == ALLOWED


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("sampling", "weights(x[order], x[order[0]])", "np.exp(x[order] - x[order[0]])"),
        ("sampling", "nucleus(w, params.top_p)", "int(np.sum(w))"),
        ("sampling", "nucleus(w, params.top_p)", "int(w.sum())"),
        ("models/rope_table", "cos, sin = cos_sin(angles)", "cos, sin = np.cos(angles), 0"),
        ("models/moe", "out * top_k_weights[rows, slots, None]", "out @ top_k_weights"),
        ("models/moe", "total[rows] + weighted", "torch.einsum('i,i', total, weighted)"),
        ("kernels/cpu/sampling", "-log32(-log32(unit(word)))", "-np.log(-np.log(unit(word)))"),
        ("engine/outcome", "import math", "from math import exp"),
    ],
)
def test_what_is_banned_is_found(module, old, new):
    source = dict(modules())[module].read_text()
    assert old in source
    allowed = {(function, called) for name, function, called in ALLOWED if name == module}
    assert set(lint(source)) == allowed
    assert set(lint(source.replace(old, new))) > allowed


def test_the_modules_that_bits_come_from_are_read():
    wanted = {"sampling", "digest", "engine/layout", "models/rope_table", "models/moe"}
    assert wanted | {"kernels/cpu/fused/step", "kernels/cpu/logits"} <= {
        name for name, _ in modules()
    }
