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
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detinfer.errors import ConfigError
from detinfer.machine import cpu_threads
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.training.data import TEST, Pool
from detinfer.recursive.training.evaluation import evaluate
from detinfer.recursive.training.recipes import RECIPES
from detinfer.recursive.training.trainer import Trainer, Weights
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
    torch.set_num_threads(cpu_threads(arguments.threads))
    task = TASKS[arguments.task]
    config, *recipes = RECIPES[arguments.task]
    if arguments.steps:
        recipes = [replace(recipe, steps=arguments.steps) for recipe in recipes]
    folder = arguments.out or Path(f"trm-{arguments.task}")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    tests = task.generate(TEST, 0, arguments.tests)
    weights: Weights | None = None
    state = _checkpoint(folder)
    past = len(state["about"]["recipes"]) if state else 1
    for number, recipe in list(enumerate(recipes, 1))[past - 1 :]:
        console.print(f"stage {number} of {len(recipes)}: making {recipe.pool} puzzles")
        pool = Pool.make(task, recipe.pool, recipe.shown, tests)
        trainer = Trainer(config, recipe, arguments.seed + number - 1, pool, weights)
        past_recipes = [asdict(one) for one in recipes[:number]]
        about = {"recipes": past_recipes, "config": asdict(config), **_same(arguments)}
        if state and number == past:
            if state["about"] != about:
                raise ConfigError(
                    f"--out: {folder} has a checkpoint of another model, recipe, seed or threads"
                )
            trainer.restore(state)
        _run(trainer, folder, number, about, console)
        weights = trainer.average
    assert weights is not None
    model = RecursiveModel(task.name, config, weights, threads=arguments.threads)
    result = evaluate(model, tests)
    save_weights(folder / "weights.safetensors", config, weights)
    card = {
        "task": task.name,
        "recipes": [asdict(recipe) for recipe in recipes],
        **_same(arguments),
        "digest": digest(weights),
        **result._asdict(),
        "curve": _curve(folder),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    console.print(json.dumps(card), soft_wrap=True)


def _curve(folder: Path) -> list[list[float]]:
    """Return stage, step, loss and share of boards that were right, line by line of the log."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [
        [one["stage"], one["step"], round(one["loss"], 4), round(one["boards"], 4)] for one in lines
    ]


def _same(arguments: argparse.Namespace) -> dict[str, int]:
    """Return what decides a training beside its recipes."""
    return {"seed": arguments.seed, "threads": arguments.threads}


def _checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of a training that was stopped."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _run(
    trainer: Trainer, folder: Path, stage: int, about: dict[str, object], console: Console
) -> None:
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
                line = {"stage": stage, "step": trainer.step, "loss": loss}
                log.write(json.dumps({**line, "cells": cells, "boards": boards}) + "\n")
                log.flush()
                sums, count = torch.zeros(3), 0
                part = folder / "checkpoint.part"
                torch.save({"about": about, **trainer.state()}, part)
                part.replace(folder / "checkpoint.pt")


if __name__ == "__main__":
    sys.exit(main())
