"""The negative control: the same kind of loads, played on kernels that promise nothing.

A check that finds nothing says something only if it finds a difference where there is one.
"""

from __future__ import annotations

from dataclasses import replace

from detinfer.check.counts import Control
from detinfer.check.mode_result import ModeResult
from detinfer.check.runner import Check
from detinfer.check.target import Target
from detinfer.errors import DetinferError
from detinfer.params import SamplingParams

RUNS, TOKENS = 8, 8  # of one prompt: fast steps go module by module, and are slow
FAMILIES = ("batch",)
WHAT = "fast mode, PyTorch's own kernels"


def control(check: Check) -> Control:
    """Return what fast mode makes of a prompt beside copies of itself, up to a first difference.

    It is cheap beside a check, and not judged. Where the check itself had that mode, it is that.
    """
    if "fast" in check.modes:
        return _counted(check.result().by_mode["fast"])
    if not check.subject.bounds.allow_fast:
        return Control(f"{check.subject.source} has no fast mode to compare with")
    some = [target for target in check.targets if target.share >= 1] or list(check.targets)
    small = type(check)(
        check.subject,
        [_short(target) for target in some[:1]],
        runs=min(RUNS, check.runs),
        modes=("fast",),
        seed=check.seed,
        families=FAMILIES,
    )
    try:
        for progress in small.progress():
            if progress.divergent_runs:
                break
    except DetinferError as error:
        return Control(f"it failed: {error}")
    return _counted(small.found().judged)


def _short(target: Target) -> Target:
    """Return a target with few tokens: digests part with the first whose logits do."""
    asked = target.params
    if not isinstance(asked, SamplingParams):
        return target
    few = min(TOKENS, asked.max_tokens or TOKENS)
    params = replace(asked, max_tokens=few, min_tokens=min(few, asked.min_tokens))
    return replace(target, params=params)


def _counted(mode: ModeResult) -> Control:
    return Control(WHAT, mode.runs, mode.unique_outputs, mode.unique_digests, mode.divergent_runs)
