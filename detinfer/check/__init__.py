"""Does every answer come out the same, bit for bit, whatever else the engine is doing?

    backend = EngineBackend(engine)
    check = Check(backend, default_targets(backend.bounds), runs=1000)
    result = check.run()
    assert result.reproducible, result.first_divergence

The result holds every count that the command line, a test or a route needs; ``Check.progress()``
gives the same one load at a time.
"""

from detinfer.check.answer import Answer, Divergence, ExactLogprob
from detinfer.check.draw import draw_loads
from detinfer.check.engine_subject import EngineBackend
from detinfer.check.load import Bounds, Load, Placement, Row
from detinfer.check.result import CheckResult, ModeResult, PromptResult
from detinfer.check.runner import Backend, Check, Mode, Progress
from detinfer.check.server_subject import ServerBackend
from detinfer.check.target import Target, default_targets

__all__ = [
    "Answer",
    "Backend",
    "Bounds",
    "Check",
    "CheckResult",
    "Divergence",
    "EngineBackend",
    "ExactLogprob",
    "Load",
    "Mode",
    "ModeResult",
    "Placement",
    "Progress",
    "PromptResult",
    "Row",
    "ServerBackend",
    "Target",
    "default_targets",
    "draw_loads",
]
