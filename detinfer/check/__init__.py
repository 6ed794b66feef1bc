"""Does every answer come out the same, bit for bit, whatever else the engine is doing?

    subject = EngineSubject(engine)
    check = Check(subject, default_targets(subject.bounds), runs=1000)
    result = check.run()
    assert result.reproducible, result.first_divergence

The result holds every count that the command line, a test or a route needs; ``Check.progress()``
gives the same one load at a time.
"""

from detinfer.check.answer import Answer, Divergence, ExactLogprob
from detinfer.check.draw import draw_loads
from detinfer.check.engine_subject import EngineSubject
from detinfer.check.load import Load, Placement, Row
from detinfer.check.mode_result import ModeResult
from detinfer.check.prompt_result import PromptResult
from detinfer.check.result import CheckResult
from detinfer.check.runner import Check, Mode, Progress
from detinfer.check.server_subject import ServerSubject
from detinfer.check.subject import Subject
from detinfer.check.target import Bounds, Target, default_targets

__all__ = [
    "Answer",
    "Bounds",
    "Check",
    "CheckResult",
    "Divergence",
    "EngineSubject",
    "ExactLogprob",
    "Load",
    "Mode",
    "ModeResult",
    "Placement",
    "Progress",
    "PromptResult",
    "Row",
    "ServerSubject",
    "Subject",
    "Target",
    "default_targets",
    "draw_loads",
]
