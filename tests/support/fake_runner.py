"""A runner without a model, importable in a spawned engine process.

Its logits are a hash of the token history that it reads back from its own page storage through the
block tables, so that any mistake of page, position or slot changes the bits of every later token.
"""

import hashlib
import logging
import os
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
from tokenizers import AddedToken

from detinfer.config import EngineConfig
from detinfer.errors import ModelLoadError
from detinfer.kernels.constants import PAGE_SIZE

VOCAB = 97
EOS = 96
SPECIAL = (95, EOS)
BYTES = "🙂".encode()


class FakeBackend:
    """One character a token, but ids 90..93, which are the four bytes of one character."""

    def get_added_tokens_decoder(self):
        return {t: AddedToken(f"<{t}>", special=True) for t in SPECIAL}

    def decode(self, token_ids, skip_special_tokens):
        assert not skip_special_tokens
        pieces = [
            BYTES[t - 90 : t - 89]
            if 90 <= t < 94
            else f"<{t}>".encode()
            if t in SPECIAL
            else chr(33 + t).encode()
            for t in token_ids
        ]
        return b"".join(pieces).decode("utf-8", "replace")


class FakeTokenizer:
    backend_tokenizer = FakeBackend()

    def encode(self, text, add_special_tokens=True):
        return [ord(character) - 33 for character in text]

    def get_vocab(self):
        return {chr(33 + token): token for token in range(VOCAB)}


class FakeRunner:
    """Fault injection: ``fail_at`` raises in that forward, ``poison`` gives NaN logits to a row
    whose last token is that id."""

    def __init__(self, num_pages=40, max_model_len=400, fail_at=None, poison=None):
        from detinfer.ops import PORTABLE  # loads torch, as fake_engine does

        self.vocab_size, self.hidden_size = VOCAB, 8
        self.max_model_len = max_model_len
        self.num_pages = num_pages
        self.eos_token_ids = frozenset([EOS])
        self.tokenizer = FakeTokenizer()
        self.profile = PORTABLE
        self.model_name = "fake"
        self.plan = "modules"
        self.dtype = self.kv_cache_dtype = "float32"
        self.generation_defaults = {}
        self.fingerprint = SimpleNamespace(
            parts={"profile": "portable"}, system_fingerprint="detinfer-test"
        )
        self.pages = np.full((num_pages, PAGE_SIZE), -1, dtype=np.int64)
        self.fail_at, self.poison = fail_at, poison
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        if len(self.batches) == self.fail_at:
            raise RuntimeError("injected fault")
        for r in range(len(batch.query_start) - 1):
            rows = slice(batch.query_start[r], batch.query_start[r + 1])
            for token, position in zip(batch.input_ids[rows], batch.positions[rows], strict=True):
                page = batch.block_tables[r, position // PAGE_SIZE]
                self.pages[page, position % PAGE_SIZE] = token
        logits = np.empty((len(batch.logit_rows), VOCAB), dtype=np.float32)
        for i, flat in enumerate(batch.logit_rows):
            length = batch.positions[flat] + 1
            row = np.searchsorted(batch.query_start, flat, side="right") - 1
            used = batch.block_tables[row, : -(-length // PAGE_SIZE)]
            logits[i] = self.logits_of(self.pages[used].reshape(-1)[:length], batch)
            if self.poison is not None and batch.input_ids[flat] == self.poison:
                logits[i, 3] = np.nan
        import torch

        return torch.from_numpy(logits)

    def logits_of(self, history, batch):
        digest = hashlib.blake2b(history.tobytes(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        return rng.normal(0, 2, VOCAB).astype(np.float32)


class LeakyRunner(FakeRunner):
    """The negative control: one bit of its logits depends on the number of rows."""

    def logits_of(self, history, batch):
        logits = super().logits_of(history, batch)
        logits[7] += np.float32(2e-7) if len(batch.query_start) > 2 else np.float32(0)
        return logits


def fake_engine(config=None, runner=None):
    from detinfer.engine.engine import Engine  # loads torch, which a process may not live to need

    return Engine(config or EngineConfig(), runner or FakeRunner())


# Factories for the engine process.


def make_engine(config, runner=None):
    import numba

    numba.set_num_threads(1)  # as in one_thread.py, which a spawned process does not read
    return fake_engine(config, runner)


def make_engine_with_suggestions(config):
    runner = FakeRunner()
    runner.generation_defaults = {"temperature": 0.6, "bad_words_ids": [[7]] * 50}
    return make_engine(config, runner)


def make_engine_that_cannot_load(config):
    raise ModelLoadError("model: no such folder")


def make_engine_with_odd_error(config):
    raise ZeroDivisionError("unexpected")


def make_talking_engine(config):
    print("a thing printed", file=sys.stderr)
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("somebody.else").error("an error")
    logging.getLogger("somebody.else").info("not worth a line")
    return make_engine(config)


class DyingRunner(FakeRunner):
    def forward(self, batch):
        if len(self.batches) == 5:
            os._exit(7)
        return super().forward(batch)


def make_dying_engine(config):
    return make_engine(config, DyingRunner())


class SlowRunner(FakeRunner):
    def forward(self, batch):
        time.sleep(0.02)
        return super().forward(batch)


def make_slow_engine(config):
    return make_engine(config, SlowRunner())


class HangingRunner(FakeRunner):
    def forward(self, batch):
        if len(self.batches) == 5:
            time.sleep(60)
        return super().forward(batch)


def make_hanging_engine(config):
    return make_engine(config, HangingRunner())


def make_broken_engine(config):
    engine = make_engine(config)

    def schedule():
        raise RuntimeError("pages are gone")

    engine.scheduler.schedule = schedule
    return engine


def die_while_loading(config):
    os._exit(3)


def hang_while_loading(config):
    time.sleep(60)


class Unreadable:
    """Something that pickles here and not there."""

    backend_tokenizer = FakeBackend()

    def __reduce__(self):
        return int, ("no number",)


def make_unreadable_engine(config):
    engine = make_engine(config)
    engine.tokenizer = Unreadable()
    return engine
