"""``python -m detinfer.recursive.train TASK``: train a recursive model on puzzles of our own.

The same seed, threads and machine give the same weights, however often it was stopped: a training
that finds its own checkpoint in the folder goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detinfer.errors import ConfigError
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.training.data import TEST, Pool
from detinfer.recursive.training.evaluation import evaluate
from detinfer.recursive.training.recipes import RECIPES
from detinfer.recursive.training.trainer import Trainer, network
from detinfer.recursive.weights import digest, save_weights

EVERY = 100  # steps between checkpoints, and between lines of the log


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m detinfer.recursive.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("task", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, help="folder of checkpoint, log and weights")
    parser.add_argument("--steps", type=int, help="of the optimiser (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tests", type=int, default=2000, help="puzzles for the last evaluation")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _arguments(argv)
    try:
        train(arguments)
    except ConfigError as error:
        print(f"detinfer: {error}", file=sys.stderr)
        return 2
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Train, evaluate and write ``weights.safetensors`` and ``card.json``."""
    torch.set_num_threads(arguments.threads)
    task = TASKS[arguments.task]
    config, recipe = RECIPES[arguments.task]
    recipe = replace(recipe, steps=arguments.steps or recipe.steps)
    folder = arguments.out or Path(f"trm-{arguments.task}")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    console.print(f"making {recipe.pool} puzzles")
    tests = task.generate(TEST, 0, arguments.tests)
    pool = Pool.make(task, recipe.pool, recipe.shown, tests)
    trainer = Trainer(config, recipe, arguments.seed, pool)
    about = {"recipe": asdict(recipe), "seed": arguments.seed, "threads": arguments.threads}
    _go_on(trainer, folder, about)
    _run(trainer, folder, about, console)
    result = evaluate(network(config, trainer.average, task), task, tests)
    save_weights(folder / "weights.safetensors", config, trainer.average)
    card = {"task": task.name, **about, "digest": digest(trainer.average), **result._asdict()}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    console.print(json.dumps(card), soft_wrap=True)


def _go_on(trainer: Trainer, folder: Path, about: dict[str, object]) -> None:
    """Take up a training that was stopped.

    Raises:
        ConfigError: the folder has a checkpoint of another one.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return
    state = torch.load(path, weights_only=True)
    if state.pop("about") != about:
        raise ConfigError(f"--out: {folder} has a checkpoint of another recipe, seed or threads")
    trainer.restore(state)


def _run(trainer: Trainer, folder: Path, about: dict[str, object], console: Console) -> None:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    steps = trainer.recipe.steps
    with Progress(*columns, console=console) as bar, (folder / "log.jsonl").open("a") as log:
        shown = bar.add_task("", total=steps, completed=trainer.step, figures="")
        sums, count = torch.zeros(3), 0
        while trainer.step < steps:
            sums, count = sums + torch.tensor(trainer.advance()), count + 1
            bar.advance(shown)
            if trainer.step % EVERY == 0 or trainer.step == steps:
                loss, cells, boards = (sums / count).tolist()
                bar.update(shown, figures=f"loss {loss:.3f}, boards {boards:.1%}")
                line = {"step": trainer.step, "loss": loss, "cells": cells, "boards": boards}
                log.write(json.dumps(line) + "\n")
                log.flush()
                sums, count = torch.zeros(3), 0
                part = folder / "checkpoint.part"
                torch.save({"about": about, **trainer.state()}, part)
                part.replace(folder / "checkpoint.pt")


if __name__ == "__main__":
    sys.exit(main())
