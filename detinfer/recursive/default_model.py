"""Which of the models that come with the package reads a board."""

from __future__ import annotations

from detinfer.errors import ModelLoadError, RequestError
from detinfer.recursive import shipped
from detinfer.recursive.puzzle import parse_board
from detinfer.recursive.tasks import TASKS


def default_model(text: str) -> str:
    """Return the first shipped model, by name, whose task has boards like this one.

    Raises:
        RequestError: none has; said as the one model says it whose boards have so many cells.
        ModelLoadError: this copy of the package has no weights at all.
    """
    if not isinstance(text, str):
        raise RequestError(f"grid: got {type(text).__name__}, expected a string", "grid")
    tasks = {name: TASKS[shipped.card(name)["task"]] for name in shipped.names()}
    if not tasks:
        raise ModelLoadError("model: got none, and this copy of detinfer has no weights")
    lengths = [len("".join(part)) for part in (text.split(), text.splitlines())]
    problem: RequestError | None = None
    for name, task in tasks.items():
        try:
            parse_board(task, text)
        except RequestError as error:
            if task.cells in lengths:
                problem = problem or error
        else:
            return name
    if problem is not None:
        raise problem
    sizes = ", ".join(f"{task.cells} ({name})" for name, task in tasks.items())
    raise RequestError(f"grid: has {lengths[0]} cells, expected {sizes}", "grid")
