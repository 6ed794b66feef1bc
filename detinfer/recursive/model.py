"""A recursive model that can be asked: weights, the kernels that step them, and what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer import __version__, ops
from detinfer.errors import ConfigError, DetinferError
from detinfer.kernels.cpu.jit import numba
from detinfer.logs import log
from detinfer.machine import cpu_threads
from detinfer.recursive import shipped
from detinfer.recursive.compiled_step import CompiledStep, misfit
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.contract_kernels import ContractKernels, pack_weights
from detinfer.recursive.network import Network
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.torch_kernels import TorchKernels
from detinfer.recursive.weights import digest, load_weights
from detinfer.rounding import contract_rounding

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

CONTRACT = "portable-1"
PLANS = ("auto", "fused", "modules")


class NotFiniteError(DetinferError):
    """A step gave puzzles a NaN or an infinity; states of the whole batch are as they were.

    Attributes:
        puzzles: their places in the batch.
    """

    def __init__(self, puzzles: list[int]) -> None:
        names = ", ".join(str(one) for one in puzzles)
        super().__init__(f"puzzle {names} of the batch: a NaN or an infinity among its logits")
        self.puzzles = puzzles


class RecursiveModel:
    """Weights and the kernels that step them.

    Args:
        name: what it is called.
        config, weights: of ``load_weights``.
        deterministic: by the contract's kernels, or by PyTorch's, whose bits follow the batch.
        plan: ``modules``: a kernel a call; ``fused``: a step a call; ``auto``: the latter where
            there is one and its bits are the same.
        threads: 0 for as many as there are cores.

    Attributes:
        task: whose boards it reads.
        weights_digest: SHA-256 of its weights.

    Raises:
        ConfigError: a task, plan or number of threads that cannot be.
    """

    def __init__(
        self,
        name: str,
        config: RecursiveConfig,
        weights: Mapping[str, Tensor],
        *,
        deterministic: bool = True,
        plan: str = "auto",
        threads: int = 0,
    ) -> None:
        if config.task not in TASKS:
            raise ConfigError(f"{name}: task {config.task!r}, expected one of {', '.join(TASKS)}")
        if plan not in PLANS:
            raise ConfigError(f"plan: got {plan!r}, expected one of {', '.join(PLANS)}")
        self.name, self.config, self.deterministic = name, config, deterministic
        self.task, self.threads = TASKS[config.task], cpu_threads(threads or None)
        self.weights_digest = digest(weights)
        units = torch.from_numpy(self.task.units) if config.mixer == "units" else None
        if deterministic:
            self._network = Network(config, pack_weights(weights), ContractKernels(), units)
        else:
            self._network = Network(config, weights, TorchKernels(), units)
        self._room: F32 = np.empty((2, 0, self.tokens, config.hidden), np.float32)
        self._compiled: CompiledStep | None = None
        if deterministic and plan != "modules":
            self._compile(plan, weights)

    @classmethod
    def load(
        cls, source: str | Path, *, deterministic: bool = True, plan: str = "auto", threads: int = 0
    ) -> RecursiveModel:
        """Load a model.

        Args:
            source: a name of ``shipped.names()``, or a ``.safetensors`` file of our training.
            deterministic, plan, threads: as the class has them.

        Raises:
            ConfigError: the file is none of ours, or settings cannot work.
            ModelLoadError: no model of that name comes with the package.
        """
        path = Path(source)
        if path.suffix != ".safetensors":
            path = shipped.path(str(source))
        config, weights = load_weights(path)
        return cls(
            path.stem, config, weights, deterministic=deterministic, plan=plan, threads=threads
        )

    @property
    def tokens(self) -> int:
        """Return the rows of a state: cells, and what stands before them."""
        return self.config.prefix + self.config.cells

    @property
    def parts(self) -> dict[str, str]:
        """What its bits depend on, by name."""
        return {
            "contract": CONTRACT,
            "config": json.dumps(asdict(self.config), sort_keys=True, separators=(",", ":")),
            "weights": self.weights_digest,
            "kernels": CONTRACT if self.deterministic else f"torch-{torch.__version__}",
        }

    @property
    def system_fingerprint(self) -> str:
        """Equal for two models that give the same bits."""
        text = json.dumps(self.parts, sort_keys=True, separators=(",", ":"))
        short = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"detinfer-{__version__}-{self.parts['kernels']}-{short}"

    def start(self, count: int) -> tuple[F32, F32]:
        """Return fresh states y and z. [count, tokens, hidden]"""
        y, z = (state.contiguous().numpy() for state in self._network.start(count))
        return y, z

    def step(self, boards: I8, y: F32, z: F32) -> tuple[I8, F32]:
        """Give every puzzle one supervision step.

        Args:
            boards: token ids. [B, cells]
            y, z: states, updated in place. [B, tokens, hidden], C-contiguous

        Returns:
            grids: the likeliest token of each cell, the lowest id among equals. [B, cells]
            q: the halting head's first output. [B]

        Raises:
            NotFiniteError: naming puzzles; nothing is updated then.
            ValueError: arrays of another shape or dtype, or an id that is no token.
        """
        self._check(boards, y, z)
        numba.set_num_threads(self.threads)  # the setting is per thread
        before = self._kept(y, z)
        if self._compiled is not None:
            grids, q = self._compiled(self.threads, boards, y, z)
        else:
            with self._rounding(), torch.inference_mode():
                grids, q = self._by_modules(boards, y, z)
        if wrong := np.flatnonzero((grids < 0).any(1) | ~np.isfinite(q)).tolist():
            y[...], z[...] = before
            raise NotFiniteError(wrong)
        return grids, q

    def _kept(self, y: F32, z: F32) -> F32:
        """Return a copy of both, in memory that stays. [2, B, tokens, hidden]"""
        if self._room.shape[1] < len(y):
            self._room = np.empty((2, *y.shape), np.float32)
        room = self._room[:, : len(y)]
        room[0], room[1] = y, z
        return room

    def _by_modules(self, boards: I8, y: F32, z: F32) -> tuple[I8, F32]:
        net = self._network
        answer, latent = torch.from_numpy(y), torch.from_numpy(z)
        x = net.embed(torch.from_numpy(boards).long())
        for _ in range(self.config.cycles):
            answer, latent = net.recursion(x, answer, latent)
        logits, verdict = net.heads(answer)
        best, _ = ops.summarise(logits.reshape(-1, self.config.vocab))
        y[...], z[...] = answer.numpy(), latent.numpy()
        return best.reshape(boards.shape).astype(np.int8), verdict.numpy()

    @contextlib.contextmanager
    def _rounding(self) -> Iterator[None]:
        """Compute by the contract, or with as many of PyTorch's threads as are ours."""
        if self.deterministic:
            with contract_rounding():
                yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _compile(self, plan: str, weights: Mapping[str, Tensor]) -> None:
        """Take the compiled step, if there is one and its bits are those of the modules.

        Raises:
            ConfigError: it was asked for, and there is none.
        """
        problem = misfit(self.config)
        if problem is None:
            units = self.task.units if self.config.mixer == "units" else None
            compiled = CompiledStep(self.config, weights, units)
            expected = self._tried()
            self._compiled = compiled
            if all(np.array_equal(a, b) for a, b in zip(expected, self._tried(), strict=True)):
                return
            self._compiled, problem = None, "its bits are not those of plan modules"
        if plan == "fused":
            raise ConfigError(f"plan: got 'fused', not possible for {self.name}: {problem}")
        log.info("%s is stepped by plan modules: %s", self.name, problem)

    def _tried(self) -> tuple[npt.NDArray[np.int32], ...]:
        """Bits of a step of three boards."""
        cells, vocab = self.config.cells, self.config.vocab
        boards = (np.arange(3 * cells).reshape(3, cells) * 7919 % vocab).astype(np.int8)
        y, z = self.start(3)
        grids, q = self.step(boards, y, z)
        return grids.astype(np.int32), *(x.view(np.int32) for x in (q, y, z))

    def _check(self, boards: I8, y: F32, z: F32) -> None:
        count, config = len(boards), self.config
        state = (count, self.tokens, config.hidden)
        for name, array, shape, dtype in (
            ("boards", boards, (count, config.cells), np.int8),
            ("y", y, state, np.float32),
            ("z", z, state, np.float32),
        ):
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name}: got {array.dtype} {array.shape}, expected contiguous "
                    f"{np.dtype(dtype)} {shape}"
                )
        if boards.size and not 0 <= boards.min() <= boards.max() < config.vocab:
            raise ValueError(
                f"boards: got ids {boards.min()}..{boards.max()}, expected 0..{config.vocab - 1}"
            )
