"""What looks for a defect, by name: a function of the plan that raises ``Difference``."""

import contract
import scale
from fuzzer import Failure, World, fuzz

STEPS = {"fused": 3000, "modules": 400}  # within which a defect is found


def _fuzzed(model, **options):
    def hunt(plan):
        try:
            return fuzz(World(plan, model, **options), STEPS[plan], shrinking=False)["compared"]
        except Failure as failure:
            raise failure.error from None  # an answer must tell, not a crash

    return hunt


HUNTS = {
    "fuzz": _fuzzed("windowed"),
    "experts": _fuzzed("experts-3"),
    "rounded": _fuzzed("windowed", kv_cache_dtype="bfloat16"),
    "grammars": _fuzzed("windowed", grammars=True),
    "long": scale.long_contexts,
    "crowd": scale.crowd,
    "end": scale.model_end,
    "failed": scale.failed_steps,
    "contract": lambda plan: contract.answers(),
    "filter": lambda plan: contract.filter_edges(),
    "rope": lambda plan: contract.rotary_positions(),
}
