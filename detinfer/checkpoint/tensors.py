"""A checkpoint's tensors: read once, into memory of their own, and seen to be numbers.

Nothing of a loaded model is a view of its files: a file written over later changes no answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detinfer.checkpoint.weight_file import TensorInfo, read_header
from detinfer.errors import ModelLoadError
from detinfer.kernels.constants import BLOCK_FORMATS

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
# Left over in old checkpoints: constants that today's classes make anew. transformers knows more,
# by architecture: masks, layers that only draft.
_IDLE = re.compile(r"(.*\.)?(masked_bias|rotary_emb\.inv_freq|position_ids)")
_OWN_MAPPING = 1 << 16
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")


@dataclass
class StoredTensor:
    """A tensor of a file, which ``[...]`` reads, as it does where transformers' loader asks.

    Attributes:
        file: an open descriptor.
        stand_in: dtype of what stands in the model for quantised blocks.
        never: whether -inf was among the values read.
        was_read: whether it was asked for.
    """

    name: str
    path: Path
    file: int
    info: TensorInfo
    stand_in: torch.dtype
    was_read: bool = field(default=False, init=False)
    never: bool = field(default=False, init=False)

    def __getitem__(self, _: Any) -> Tensor:
        """Return the whole tensor, in memory that nothing else holds; for blocks one that is none.

        Raises:
            ModelLoadError: the file cannot be read, or a value is NaN or +inf.
        """
        self.was_read = True
        if self.is_packed:
            return torch.zeros(1, dtype=self.stand_in).expand(self.info.shape)
        values = self.read().view(_DTYPES[self.info.dtype]).reshape(self.info.shape)
        self._judge(values)
        return values

    @property
    def is_packed(self) -> bool:
        """Whether the file has quantised blocks, which no module of transformers takes."""
        return self.info.dtype in BLOCK_FORMATS

    def read(self) -> Tensor:
        """Return the tensor's bytes, in memory that nothing else holds. uint8

        Raises:
            ModelLoadError: the file cannot be read.
        """
        begin, end = self.info.span
        data = _memory(end - begin)
        view, done = data.numpy().data, 0
        while done < len(view):
            try:
                count = os.preadv(self.file, [view[done:]], begin + done)
            except OSError as error:
                raise ModelLoadError(
                    f"weights file {self.path}: cannot be read ({error.strerror})"
                ) from error
            if not count:
                raise ModelLoadError(f"weights file {self.path}: was cut short while it was read")
            done += count
        return data

    def _judge(self, values: Tensor) -> None:
        if not values.is_floating_point() or not values.numel():
            return
        low, high = (float(bound) for bound in values.aminmax())  # NaN if any value is
        if not high < float("inf"):
            found = "NaN" if high != high else "infinity"
            raise ModelLoadError(f"weights file {self.path}: tensor {self.name} holds {found}")
        self.never = low == float("-inf")


def _memory(size: int) -> Tensor:
    """Bytes that go back to the system when they are freed: a weight lives until it is packed.

    What the allocator's arenas take back from transformers' threads stays with the process.
    """
    if size < _OWN_MAPPING:
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size, flags=_PRIVATE), dtype=torch.uint8)


@contextlib.contextmanager
def open_tensors(
    paths: Sequence[Path], stand_in: torch.dtype = torch.float32
) -> Iterator[dict[str, StoredTensor]]:
    """Return the tensors of safetensors files by name, readable inside the block.

    Args:
        paths: of the files.
        stand_in: see ``StoredTensor``; the model's, so that nothing is converted.

    Raises:
        ModelLoadError: a file cannot be read, or experts are not all there.
    """
    tensors: dict[str, StoredTensor] = {}
    with contextlib.ExitStack() as stack:
        for path in paths:
            header = read_header(path)
            try:
                file = stack.enter_context(open(path, "rb"))
            except OSError as error:
                raise ModelLoadError(
                    f"weights file {path}: cannot be read ({error.strerror})"
                ) from error
            for name, info in header.items():
                if name in tensors:
                    raise ModelLoadError(
                        f"weights file {path}: tensor {name} is in {tensors[name].path.name} too"
                    )
                tensors[name] = StoredTensor(name, path, file.fileno(), info, stand_in)
        _check_experts(tensors)
        yield tensors


def check_layers(config: Any, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse more layers than a file has tensors: they would be built in vain.

    Raises:
        ModelLoadError: it claims more.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > len(tensors):
        raise ModelLoadError(
            f"{folder / 'config.json'}: num_hidden_layers: got {layers}, but its files hold only "
            f"{len(tensors)} tensors"
        )


def check_whole(
    model: Any, tensors: Mapping[str, StoredTensor], info: Mapping[str, Any], folder: Path
) -> None:
    """Every parameter and persistent buffer came from the files, and every tensor was used.

    Tied weights need one tensor. Tensors that are known to be idle may be there.

    Args:
        model: as ``from_pretrained`` made it from ``tensors``.
        tensors: what it could ask for.
        info: ``from_pretrained``'s own account of it.
        folder: the model's, for messages.

    Raises:
        ModelLoadError: naming a tensor.
    """
    kind = type(model).__name__
    missing = info["missing_keys"] - model.all_tied_weights_keys.keys() or info["missing_keys"]
    odd = {name for name in info["unexpected_keys"] if not _IDLE.fullmatch(name)}
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ModelLoadError(
            f"{folder}: tensor {name} has shape {list(found)}, config.json says {list(expected)}"
        )
    faults = [
        f"tensor {_first(names)} {fault}"
        for names, fault in (
            (missing, "is missing"),
            (odd, f"has no place in a {kind}"),
        )
        if names
    ]
    if faults:
        raise ModelLoadError(f"{folder}: {'; '.join(faults)}")
    if info["error_msgs"]:
        raise ModelLoadError(f"{folder}: {str(info['error_msgs'][0]).splitlines()[0]}")
    _check_used_once(model, tensors, folder)
    _check_never(model, tensors)


def _check_used_once(model: Any, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """No two tensors went to one place, where the later one would be dropped without a word."""
    prefix = f"{model.base_model_prefix}."
    for name in tensors:
        if prefix + name in tensors:
            raise ModelLoadError(f"{folder}: tensor {name} is there twice, as {prefix + name} too")
    held = {id(value): value.numel() for value in model.state_dict(keep_vars=True).values()}

    def stored(name: str) -> bool:
        return any(one.endswith(name.removeprefix(prefix)) for one in tensors)

    tied = (pair for pair in model.all_tied_weights_keys.items() if all(map(stored, pair)))
    twice = sum(model.get_parameter(target).numel() for target, _ in tied)
    read = sum(torch.Size(t.info.shape).numel() for t in tensors.values() if t.was_read)
    if read != sum(held.values()) + twice:
        raise ModelLoadError(
            f"{folder}: its tensors hold {read} numbers and the model takes {sum(held.values())}: "
            "some tensor is there twice, under two names"
        )


def _check_never(model: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """-inf means "never" in the bias of the output layer, and nothing anywhere else."""
    head = model.get_output_embeddings()
    allowed = tuple(f"{name}.bias" for name, module in model.named_modules() if module is head)
    for tensor in tensors.values():
        if tensor.never and not tensor.name.endswith(allowed):
            raise ModelLoadError(
                f"weights file {tensor.path}: tensor {tensor.name} holds -infinity, which only the "
                "output layer's bias may"
            )


def _check_experts(tensors: Mapping[str, StoredTensor]) -> None:
    """Experts with a tensor each are numbered 0, 1, 2 …: transformers stacks whatever it finds."""
    blocks: dict[str, dict[str, dict[int, StoredTensor]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            blocks[match[1]][match[3]][int(match[2])] = tensor
    for block, kinds in blocks.items():
        count = 1 + max(max(found) for found in kinds.values())
        for kind, found in kinds.items():
            for expert in range(count):
                name = f"{block}.{expert}.{kind}"
                if expert not in found:
                    path = next(iter(found.values())).path
                    raise ModelLoadError(f"weights file {path}: tensor {name} is missing")
                if found[expert].info.shape != (first := found[0].info.shape):
                    raise ModelLoadError(
                        f"weights file {found[expert].path}: tensor {name} has shape "
                        f"{list(found[expert].info.shape)}, expert 0 has {list(first)}"
                    )


def _first(names: set[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"
