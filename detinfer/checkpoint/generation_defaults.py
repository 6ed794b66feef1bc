"""Sampling that a model's authors suggest, which is shown and never applied: requests decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detinfer.checkpoint.folder import read_json

_FILE = "generation_config.json"
# What transformers would do with these unless asked for something else; see its GenerationConfig.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1, 1.0),
    "top_k": (50, 0),
    "top_p": (1, 1.0),
    "min_p": (0, 0.0),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "encoder_repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "length_penalty": (1, 1.0),
    "num_beams": (1,),
    "penalty_alpha": (),
    "guidance_scale": (1, 1.0),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "stop_strings": (),
}


def generation_defaults(folder: Path) -> dict[str, Any]:
    """Return what generation_config.json suggests that would change an answer, as it says it.

    ``eos_token_id`` is not among them: it is obeyed.

    Raises:
        ModelLoadError: the file is damaged.
    """
    if not (folder / _FILE).is_file():
        return {}
    given = read_json(folder / _FILE)
    return {
        name: given[name]
        for name, neutral in _NEUTRAL.items()
        if given.get(name) is not None and given[name] not in neutral
    }


def not_applied(defaults: dict[str, Any]) -> str:
    """One line on ``defaults``, however long a list is in there."""
    said = ", ".join(f"{name} {str(value)[:40]}" for name, value in defaults.items())
    return f"{_FILE} suggests {said}: not applied, requests decide"
