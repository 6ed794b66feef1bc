"""Makes a client of the description by openapi-python-client, and calls every route with it.

python_generated.py URL FOLDER
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MADE = "detinfer_client"
PROMPT = "The capital of France is"
BOARD = "3.......5...2...4....5...61...5.31.."


def make_client(url: str, folder: Path) -> None:
    """The generator's own command; it must have nothing to warn of."""
    settings = folder / "settings.yml"
    settings.write_text("post_hooks: []\n")  # which would format the code
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    command += ["--url", f"{url}/openapi.json", "--config", str(settings), "--meta", "none"]
    command += ["--output-path", str(folder / MADE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(done.stdout)
    sys.path.insert(0, str(folder))


def modules(package: str) -> dict[str, Any]:
    """Every module of a package, imported."""
    found = importlib.import_module(package)
    names = [one.name for one in pkgutil.iter_modules(found.__path__)]
    return {name: importlib.import_module(f"{package}.{name}") for name in names}


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    make_client(url, folder)
    routes = modules(f"{MADE}.api.default")
    models = importlib.import_module(f"{MADE}.models")
    client = importlib.import_module(MADE).Client(url, timeout=120, raise_on_unexpected_status=True)

    def answer(name: str, *arguments: Any, **body: Any) -> Any:
        response = routes[name].sync_detailed(*arguments, client=client, **body)
        assert response.status_code == 200, (name, response)
        called.add(name)
        return response

    def call(name: str, *arguments: Any, **body: Any) -> Any:
        return answer(name, *arguments, **body).parsed

    def events(name: str, body: Any) -> str:
        """What a stream says; the generator has no types of its own for events."""
        return str(answer(name, body=body).content.decode())

    called: set[str] = set()
    card, solver = call("models").data
    assert (call("model", card.id), call("model", solver.id)) == (card, solver)
    for name in ("health", "ready", "health_generate"):
        assert call(name).status == "ready"
    version = call("version").version
    for name in ("server_info", "get_server_info"):
        assert call(name)["version"] == version
    for name in ("info", "model_info", "get_model_info"):
        assert card.id in call(name).additional_properties.values()
    assert "detinfer:" in call("metrics")
    assert call("tokenizer_info").model_max_length == card.max_model_len

    tokens = call("tokenize", body=models.TokenizeRequest(prompt=PROMPT)).tokens
    assert call("detokenize", body=models.DetokenizeRequest(tokens=tokens)).prompt == PROMPT
    greedy = models.CompletionRequest(prompt=[PROMPT], max_tokens=3, temperature=0, logprobs=1)
    [choice] = call("completions", body=greedy).choices
    assert len(choice.logprobs.tokens) == 3
    ask = models.GenerateRequest(input_ids=tokens, max_tokens=3, receipt=True)
    generated = call("generate", body=ask)
    assert (generated.text, generated.digest) == (choice.text, choice.digest)
    verdict = call("verify", body=generated.receipt)
    assert (verdict.match, verdict.tokens, verdict.findings) == (True, 3, [])
    solution = call("solve", body=models.SolveRequest(grid=BOARD, model=solver.id))
    assert (solution.status, solution.puzzle, solution.model) == ("solved", BOARD, solver.id)
    few = models.TGIParameters(max_new_tokens=3)
    ask = models.TGIRequest(inputs=PROMPT, parameters=few)
    [whole] = call("generate_or_stream", body=ask)
    assert whole.generated_text == choice.text
    assert choice.text.strip() in events("generate_stream", ask)
    hello = models.ChatMessage(role=models.ChatMessageRole.USER, content="Hello")
    chat = models.ChatCompletionRequest(messages=[hello], max_completion_tokens=3, temperature=0)
    assert call("chat_completions", body=chat).choices[0].message.role == "assistant"
    ask = models.ResponsesRequest(input_="Hello", max_output_tokens=3, temperature=0)
    response = call("responses", body=ask)
    assert (response.status, response.output[0].role) == ("incomplete", "assistant")
    ask = models.EmbeddingRequest(input_=[PROMPT, "Hello"], dimensions=16)
    assert [len(one.embedding) for one in call("embeddings", body=ask).data] == [16, 16]
    scored = call("score", body=models.ScoreRequest(queries=PROMPT, items=[PROMPT, "Hello"])).data
    assert scored[0].score > scored[1].score
    [same] = call("v1_score", body=models.ScoreRequest(text_1=PROMPT, text_2=PROMPT)).data
    assert same.digest == scored[0].digest
    result = events("check", models.CheckRequest(prompt=PROMPT, runs=2, max_tokens=2))
    assert result.rstrip().endswith("[DONE]")
    assert "flushed" in call("flush_cache")

    # What is refused is an object as well.
    wrong = models.CompletionRequest(prompt=PROMPT, max_tokens=-1)
    refused = routes["completions"].sync(client=client, body=wrong)
    assert refused.error.param == "max_tokens"
    assert called == set(routes), set(routes) - called
    print(f"openapi-python-client: {len(called)} routes called")


if __name__ == "__main__":
    main()
