"""The parts of ``benchmarks/gpu_suite.py``.

- ``bench``: sections, their budget, the results file;
- ``sizes``: the models and shapes, real ones and tiny ones;
- ``device``: the machine's facts and ceilings, and how things are timed;
- ``compiling``: all kernels compiled first, by all cores;
- ``bits``, ``attention_bits``: equality of bits on the device;
- ``linear_speed``, ``kernel_speed``: kernels against cuBLAS, SDPA and the ceilings;
- ``random_model``, ``engine``: whole engines over random weights, invariance and slowdown;
- ``report``: the bars and the summary.
"""
