"""lm-eval's ``local-completions`` with a detinfer server: lm_eval_client.py URL BATCH:CONCURRENT…

Prints, as JSON, what was logged of every sample in a run at each of these batch sizes. The server
tokenises too, so that no tokenizer is needed here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ["OPENAI_API_KEY"] = ""  # sent all the same, as an empty bearer token

import lm_eval
import requests
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parents[1] / "tasks"


def evaluate(url: str, model: str, batch_size: int, concurrent: int) -> dict[str, Any]:
    """The samples of each task, in their order."""
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": model,
            "base_url": f"{url}/v1/completions",
            "num_concurrent": concurrent,
            "max_retries": 1,
        },
        batch_size=batch_size,
        tasks=["choose", "continue", "write"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
    )
    return {
        task: [
            {"doc": sample["doc"], "resps": sample["resps"]}
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ]
        for task, samples in results["samples"].items()
    }


def main() -> None:
    url, sizes = sys.argv[1], sys.argv[2:]
    os.chdir(TASKS)  # the tasks name their data relative to it
    model = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
    runs = {size: evaluate(url, model, *map(int, size.split(":"))) for size in sizes}
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
