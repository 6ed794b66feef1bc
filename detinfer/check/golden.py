"""Golden digests: what a model answered once, in a file, and what of it has moved since.

A team keeps the file beside its tests: whoever moves a bit, by a new release, another file of
weights or a kernel, is told which prompts moved and which parts of the fingerprint changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detinfer import __version__
from detinfer.check.bounded import read_bounded
from detinfer.check.load import that_were_set
from detinfer.check.prompt_result import PromptResult
from detinfer.check.result import CheckResult
from detinfer.check.target import Target
from detinfer.errors import ConfigError

FORM = "detinfer-golden-1"
MAX_BYTES = 16 << 20
WEIGHTS = "weights"  # the part of a fingerprint that names the model itself

Parts = Mapping[str, str]


def render_golden(result: CheckResult, parts: Parts) -> str:
    """Return a golden file of what each prompt gives alone."""
    answers = [
        {**_key(one.target), "text": one.expected.text, "digest": one.expected.digest}
        for one in result.prompts
    ]
    told = {
        "form": FORM,
        "detinfer": __version__,
        "source": result.source,
        "fingerprint": dict(parts),
        "answers": answers,
    }
    return json.dumps(told, ensure_ascii=False, indent=1) + "\n"


def _key(target: Target) -> dict[str, Any]:
    """Return what an answer is a function of, beside the model; an upgrade's new fields are not."""
    return {"prompt": target.prompt, "params": that_were_set(target.params)}


def _text(key: Mapping[str, Any]) -> str:
    told = json.loads(json.dumps({name: key[name] for name in ("prompt", "params")}))
    return json.dumps(told, sort_keys=True)  # whose names are all strings now, as a file's are


@dataclass(frozen=True)
class Moved:
    """What is not as a golden file has it.

    Attributes:
        prompts: those whose digest is another, each with the golden one.
        parts: of the fingerprint, by name: what the file has and what is now, None for neither.
    """

    prompts: Sequence[tuple[PromptResult, str]]
    parts: Mapping[str, tuple[str | None, str | None]]


class Golden:
    """A golden file.

    Args:
        path: the file.

    Raises:
        ConfigError: there is none, or it is no golden file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        data = read_bounded(path, MAX_BYTES, self._wrong)
        try:
            told = json.loads(data)
            form = str(told["form"])
            self._parts = {str(name): str(value) for name, value in told["fingerprint"].items()}
            self._digests = {_text(one): str(one["digest"]) for one in told["answers"]}
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise self._wrong("not a golden file, which --update writes") from None
        if form != FORM:
            raise self._wrong(f"form {form!r:.40}, expected {FORM!r}")

    def accept(self, targets: Sequence[Target], parts: Parts) -> None:
        """See to it, before the long work, that the file can be compared with.

        Raises:
            ConfigError: it is of another model, or lacks a prompt.
        """
        old, new = self._parts.get(WEIGHTS), parts.get(WEIGHTS)
        if old != new:
            raise self._wrong(f"of another model: weights {old!s:.16}, this one has {new!s:.16}")
        for number, target in enumerate(targets, 1):
            if _text(_key(target)) not in self._digests:
                raise self._wrong(f"has no answer to number {number}, {target.label!r}")

    def compare(self, result: CheckResult, parts: Parts) -> Moved:
        """Return what has moved."""
        golden = [(one, self._digests[_text(_key(one.target))]) for one in result.prompts]
        names = sorted({*self._parts, *parts})
        pairs = {name: (self._parts.get(name), parts.get(name)) for name in names}
        return Moved(
            [(one, digest) for one, digest in golden if one.expected.digest != digest],
            {name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
        )

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"--golden: {self.path}: {what}")
