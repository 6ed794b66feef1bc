"""Models from the Hugging Face hub: only files that hold no code."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from detinfer.errors import ModelLoadError

# Weights by the names transformers looks for: some repositories hold a second copy under another.
_WANTED = [
    "config.json",
    "adapter_config.json",  # only to say what it is
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
]


def fetch_from_hub(name: str, progress: bool) -> Path:
    """Return the folder of a hub model in Hugging Face's own cache, fetched where needed.

    When the hub cannot be reached, what an earlier run fetched is used.

    Raises:
        ModelLoadError: no such model, no access to it, or it is not here and the hub out of reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        with _bars(progress):
            return Path(snapshot_download(name, allow_patterns=_WANTED))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"model {name!r}: its authors ask for consent; accept on "
            f"https://huggingface.co/{name}, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"model {name!r}: no such folder here and no such model on the Hugging Face hub (or a "
            "private one: `hf auth login`)"
        ) from error
    except HFValidationError as error:
        raise ModelLoadError(f"model {name!r}: not a hub id ({_first_line(error)})") from error
    except Exception as error:  # the HTTP library below, and so its errors, differ by version
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ModelLoadError(
                f"model {name!r}: no disk space left in the hub's cache; free some, or set HF_HOME "
                "to a folder that has more"
            ) from error
        raise ModelLoadError(
            f"model {name!r}: no such folder here, and the Hugging Face hub cannot be reached "
            f"({_first_line(error.__cause__ or error)}); check the network, or name a folder or "
            ".gguf file"
        ) from error


@contextlib.contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
