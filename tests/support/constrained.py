"""The tiny model with a tokenizer of ASCII, for answers that a grammar constrains."""

import time

import numba
from fake_engine import byte_tokenizer
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine import trial
from detinfer.engine.engine import Engine

END = 2


class AsciiRunner(TinyModelRunner):
    eos_token_ids = frozenset([END])

    def __init__(self, **options):
        super().__init__(**{"num_pages": 64} | options)
        self.tokenizer = byte_tokenizer(size=128)


def ascii_engine(config=None):
    return Engine(config or EngineConfig(), AsciiRunner())


def make_slow_compiling_engine(config):
    """A factory for the engine process: each schema takes half a second to compile."""
    numba.set_num_threads(1)
    rules = trial.Trial.rules

    def slowly(self, field, text):
        time.sleep(0.5 * (field == "json_schema"))
        return rules(self, field, text)

    trial.Trial.rules = slowly
    return ascii_engine(config)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
