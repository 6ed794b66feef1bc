"""Grammars of requests: compiled in a thread beside the steps, and kept for the next request."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from detinfer.engine.constraint import Constraint
from detinfer.engine.detokenizer import raise_panic
from detinfer.engine.outputs import EngineInfo
from detinfer.engine.rules import failure_of, make_matcher, make_table
from detinfer.engine.trial import STACK_BYTES, Trial
from detinfer.engine.validation import stop_ids
from detinfer.errors import RequestError
from detinfer.params import SamplingParams, constraint_of

if TYPE_CHECKING:  # loaded with the first grammar: an engine that meets none does without it
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 64  # grammars
# Steps lose a thirtieth of a core to them, and they have that on a machine that is never idle.
NICE = 15
Result = TypeVar("Result")


class GrammarCompiler:
    """Compiles what constrains requests, one after another.

    Its thread has little priority: steps hardly wait for it. A grammar once compiled is kept as
    it was before its first token, and every request has a copy that shares nothing with others'.

    Args:
        tokenizer: the model's.
        info: of the model.
    """

    def __init__(self, tokenizer: Any, info: EngineInfo) -> None:
        self._backend, self._info = tokenizer.backend_tokenizer, info
        self._worker: ThreadPoolExecutor | None = None
        # Touched by the worker's thread alone.
        self._table: LLTokenizer | None = None
        self._trial: Trial | None = None
        self._templates: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()

    def start(self, params: SamplingParams) -> Future[Constraint] | None:
        """Begin to compile what constrains a request; None if nothing does.

        The future's exception is a RequestError that names the field.
        """
        given = constraint_of(params)
        if given is None:
            return None
        return self._submit(self._constraint, *given)

    def _constraint(self, field: str, text: str) -> Constraint:
        template = self._templates.get((field, text))
        if template is None:
            template = self._compile(field, text)
            self._templates[field, text] = template
            if len(self._templates) > _KEPT:
                self._templates.popitem(last=False)
        self._templates.move_to_end((field, text))
        return Constraint(template.deep_copy())

    def prepare(self) -> None:
        """Make the tokenizer's table, during which no step can run, before anybody has to wait."""
        self._submit(self._make_table).result()

    def _make_table(self) -> None:
        with contextlib.suppress(Exception):  # whoever asks for a grammar is told
            self._known()

    def _known(self) -> LLTokenizer:
        if self._table is None:
            known = (
                self._backend.to_str(),
                self._info.vocab_size,
                sorted(stop_ids(SamplingParams(), self._info)),
            )
            self._trial = Trial(*known)
            self._table = make_table(*known)
        return self._table

    def _compile(self, field: str, text: str) -> LLMatcher:
        matcher, failure = None, None
        try:
            table = self._known()
            assert self._trial is not None
            matcher = make_matcher(table, self._trial.rules(field, text))
            failure = failure_of(matcher)
        except BaseException as error:
            with contextlib.suppress(RuntimeError):
                raise_panic(error)
            failure = " ".join(str(error).split())[:300] or type(error).__name__
        if failure is not None and failure.startswith("NoExtension"):
            failure = "there is no text that it allows"
        if matcher is None or failure is not None:
            raise RequestError(f"{field}: {failure}", field) from None
        return matcher

    def _submit(self, work: Callable[..., Result], *given: str) -> Future[Result]:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "grammars", _yield_to_others)
        with _deep_stack():
            return self._worker.submit(work, *given)


def _yield_to_others() -> None:
    """Lower the priority of this thread, where a thread has one of its own."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


@contextlib.contextmanager
def _deep_stack() -> Iterator[None]:
    """Threads that are started meanwhile have a large stack."""
    before = threading.stack_size(STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)
