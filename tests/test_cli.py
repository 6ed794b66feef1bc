from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from detinfer import cli
from detinfer.cli import flags
from detinfer.cli.preflight import check_start
from detinfer.config import EngineConfig, ServerConfig
from detinfer.errors import ConfigError
from detinfer.machine import cpu_threads, usable_cores


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _parse(*arguments: str) -> Any:
    return cli._parser().parse_args(arguments)


def test_flags_left_out_give_the_configs_defaults():
    args = _parse("serve")
    assert flags.engine_config(args) == EngineConfig()
    assert flags.server_config(args) == ServerConfig()


def test_every_flag_reaches_its_field():
    args = _parse(
        *("serve", "org/model", "--device", "cpu", "--numerics", "portable", "--plan", "fused"),
        *("--dtype", "bfloat16", "--weights", "packed"),
        *("--max-model-len", "100", "--max-num-seqs", "3"),
        *("--quantize", "q4_k", "--max-num-batched-tokens", "64", "--kv-cache-memory", "2GiB"),
        *("--kv-cache-dtype", "bfloat16", "--threads", "2"),
        *("--no-default-deterministic", "--no-fast-mode"),
        *("--no-prefix-caching", "--no-speculation"),
        *("--host", "::1", "--port", "0", "--api-key", "a", "--api-key", "b"),
        *("--served-model-name", "m", "--max-queue-size", "0", "--shutdown-timeout", "1.5"),
    )
    assert flags.engine_config(args) == EngineConfig(
        model="org/model",
        device="cpu",
        numerics="portable",
        plan="fused",
        dtype="bfloat16",
        weights="packed",
        quantize="q4_k",
        max_model_len=100,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        kv_cache_memory=2 << 30,
        kv_cache_dtype="bfloat16",
        threads=2,
        default_deterministic=False,
        allow_fast=False,
        prefix_caching=False,
        speculation=False,
    )
    assert flags.server_config(args) == ServerConfig(
        host="::1",
        port=0,
        api_keys=("a", "b"),
        served_model_name="m",
        max_queue_size=0,
        shutdown_timeout=1.5,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("123", 123), ("1B", 1), ("2GiB", 2 << 30), ("512mib", 512 << 20), ("1.5KiB", 1536)],
)
def test_sizes(text, expected):
    assert flags.size(text) == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--quiet"], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["serve", "--prot", "1"], "arguments: --prot, did you mean --port?; see detinfer serve"),
        (["serve", "--kv-memory", "1"], "arguments: --kv-memory, did you mean --kv-cache-memory?"),
        (["serve", "--xyzzy=1"], "unrecognized arguments: --xyzzy; see detinfer serve --help"),
        (["serve", "a", "b"], "unrecognized arguments: b; see detinfer serve --help"),
        (["serve", "-m", "a/b", "c/d"], "MODEL: got 'c/d' beside 'a/b', expected one"),
        (["pull", "a/b", "--model", "c/d"], "-m/--model: got 'c/d' beside 'a/b', expected one"),
        (["generate", "--promt", "x"], "--promt, did you mean --prompt?; see detinfer generate"),
        (["serve", "--port", "http"], "--port: got 'http', expected an integer in 0..65535"),
        (["serve", "--port", "65536"], "--port: got '65536', expected an integer in 0..65535"),
        (["serve", "--threads", "0"], "--threads: got '0', expected an integer of at least 1"),
        (["serve", "--threads", "1e3"], "--threads: got '1e3', expected an integer"),
        (["serve", "--max-num-seqs", "9" * 5000], "expected an integer of at least 1"),
        (["serve", "--kv-cache-memory", "2GB"], "got '2GB', expected bytes, or a size such as"),
        (["serve", "--kv-cache-memory", "-1"], "expected"),
        (["serve", "--kv-cache-memory", "0"], "got '0', expected more than nothing"),
        (["serve", "--shutdown-timeout", "nan"], "got 'nan', expected seconds in 0..86400"),
        (["serve", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["serve", "--weights", "q4_0"], "--weights: invalid choice: 'q4_0'"),
        (["serve", "--quantize", "q4"], "--quantize: invalid choice: 'q4' (choose from"),
        (["pull", "--quantize", "q4_0"], "quantize: got 'q4_0', but the default model is a GGUF"),
        (
            ["serve", "a/b", "--quantize", "q8_0", "--weights", "dequantized"],
            "quantize: got 'q8_0' with weights 'dequantized', expected auto or packed",
        ),
        (
            ["serve", "a/b", "--quantize", "q8_0", "--device", "cuda"],
            "quantize: got 'q8_0' with profile native, expected None",
        ),
        (["serve", "--kv-cache-dtype", "fp8"], "--kv-cache-dtype: invalid choice: 'fp8'"),
        (
            ["serve", "--device", "cuda", "--numerics", "portable"],
            "numerics: got 'portable' with device 'cuda', expected native",
        ),
        (["serve", "--api-key", ""], "--api-key: expected printable ASCII characters"),
        (["serve", "--api-key", "a\nb"], "--api-key: expected printable ASCII characters"),
        (["generate"], "the following arguments are required: -p/--prompt"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "temperature: got -1.0, expected"),
        (["generate", "--prompt", "x", "--temperature", "nan"], "temperature: got nan, expected"),
        (["generate", "--prompt", "x", "--max-tokens", "0"], "--max-tokens: got '0', expected"),
        (["solve"], "the following arguments are required: PUZZLE; see detinfer solve --help"),
        (["solve", "1.", "--max-steps", "0"], "--max-steps: got '0', expected an integer in 1.."),
        (["solve", "1.", "--halt", "soon"], "--halt: invalid choice: 'soon'"),
        (["solve", "1.", "--noise", "nan"], "noise: got nan, expected a number in 0..100"),
        (["solve", "1.", "-m", "trm-chess"], "model: got 'trm-chess', expected one of: "),
        (["check", "m", "--url", "http://x"], "MODEL: got it beside --url"),
        (
            ["check", "--report", "r.txt"],
            "--report: got 'r.txt', expected a .html, .json or .xml",
        ),
        (["check", "--mode", "slow"], "--mode: invalid choice: 'slow'"),
        (["doctor", "--full"], "--full: expected beside --compile-audit"),
        (["prove", "receipt.json"], "COMMAND: invalid choice: 'prove' (choose"),
        (["verify"], "the following arguments are required: RECEIPT"),
        (["verify", "/nowhere/r.json"], "RECEIPT: /nowhere/r.json: No such file or directory"),
        (["generate", "-p", "x", "--receipt-key", "k"], "--receipt-key: expected beside --receipt"),
        (["bench"], "detinfer bench: error: the following arguments are required: NAME; see"),
        (["bench", "speed", "--json", "f"], "NAME: invalid choice: 'speed' (choose from 'peers'"),
        (["bench", "--json", "f"], "unrecognized arguments: --json; see detinfer bench --help"),
        (["pull", "/no/such/model"], "no such file or folder"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(command, message, capsys):
    try:
        status = cli.main(command)
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("detinfer")
    assert ": error: " in err
    assert message in err


def test_no_command_at_all_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert capsys.readouterr() == (cli._parser().format_help(), "")


@pytest.mark.parametrize("given", [["a/b"], ["-m", "a/b"], ["--model", "a/b"], ["--model=a/b"]])
@pytest.mark.parametrize("command", ["serve", "check", "pull"])
def test_a_model_is_named_first_or_by_a_flag(command, given):
    assert _parse(command, *given).model == "a/b"
    assert _parse(command).model is None


def test_a_value_with_spaces_may_begin_like_a_flag():
    assert _parse("generate", "-p", "--help yourself", "m").prompt == "--help yourself"
    assert _parse("generate", "-p=x", "--", "--model").model == "--model"


def test_what_shows_in_a_moment_is_said_before_anything_heavy_is_imported(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    many = str(usable_cores() + 1)
    cases = {
        "no such file or folder": ["serve", "/no/such", "--port", "0"],
        "has no config.json": ["serve", str(tmp_path / "empty"), "--port", "0"],
        "not a GGUF file": ["generate", "-p", "x", "-m", str(tmp_path / "page.gguf")],
        "device: got 'cuda', but": ["check", "--device", "cuda"],
        "numerics: got 'native' with device 'cpu'": ["serve", "--numerics", "native"],
        f"threads: got {many}, expected": ["serve", "--threads", many],
        f"--port: cannot listen on 127.0.0.1 port {port}": ["serve", "--port", port],
        "--host: got 'no such host'": ["serve", "--host", "no such host"],
        "--report: /no/such/r.html cannot be written": ["check", "--report", "/no/such/r.html"],
        "cannot be reached": ["check", "--url", f"http://127.0.0.1:{_free_port()}"],
        "temperature: got -1.0": ["generate", "-p", "x", "--temperature", "-1"],
        "model: got 'trm-chess'": ["solve", "1.", "-m", "trm-chess"],
    }
    script = (
        "import json, sys; from detinfer import cli\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    print(cli.main(command), flush=True)\n"
        "heavy = {'torch', 'transformers', 'numba', 'triton', 'fastapi', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    with taken:
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(list(cases.values()))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout.splitlines() == ["2"] * len(cases) + ["[]"], done.stderr
    said = [line for line in done.stderr.splitlines() if "error:" in line]
    for words, line in zip(cases, said, strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("build", "driver", "words"),
    [
        ("2.13.0+cpu", True, "the PyTorch installed is 2.13.0+cpu, a build for CPUs"),
        ("2.13.0", False, "there is no NVIDIA driver here"),
        ("2.13.0+cu130", True, None),
    ],
)
def test_a_gpu_is_looked_for_without_torch(monkeypatch, build, driver, words):
    def load(name):
        if not driver:
            raise OSError(name)

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.metadata.version", lambda name: build)
    monkeypatch.setattr("ctypes.CDLL", load)
    config = EngineConfig(device="cuda")
    if words is None:
        check_start(config)
        return
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_start(config)


@pytest.mark.parametrize(
    ("limit", "asked", "expected"), [("1", None, 1), ("1", 1, 1), ("x", 1, 1), ("999", None, None)]
)
def test_threads_are_bounded_by_numbas_variable(monkeypatch, limit, asked, expected):
    monkeypatch.setenv("NUMBA_NUM_THREADS", limit)
    assert cpu_threads(asked) == (expected or usable_cores())
    with pytest.raises(ConfigError, match=r"threads: got 1000, expected 1\.\."):
        cpu_threads(1000)


def test_interrupt_is_status_130(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_pull", interrupted)
    assert cli.main(["pull"]) == 130


@pytest.mark.parametrize(
    "command", ["--help", "--version", "serve --help", "check --help", "solve --help"]
)
def test_help_loads_nothing_heavy(command):
    script = (
        "import sys; from detinfer import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'numba', 'transformers', 'fastapi', 'pydantic', 'rich'}\n"
        "slow = {'importlib.metadata', 'asyncio', 'multiprocessing'}\n"
        "print(sorted((heavy | slow) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command.split()], capture_output=True, text=True
    )
    assert (done.stderr, "detinfer" in done.stdout) == ("[]\n", True)


def test_pull_prints_where_the_model_is(monkeypatch, capsys):
    asked = []

    def resolve(model, weights, quantize, progress):
        asked.append((model, weights, quantize, progress))
        return SimpleNamespace(name="tiny", folder="/models/tiny")

    monkeypatch.setattr("detinfer.checkpoint.loader.resolve_model", resolve)
    assert cli.main(["pull", "org/tiny", "--quantize", "q4_0"]) == 0
    assert asked == [("org/tiny", "auto", "q4_0", True)]
    assert capsys.readouterr().out == "tiny: /models/tiny\n"
    assert cli.main(["pull", "tiny.gguf", "--weights", "dequantized"]) == 0
    assert asked[1:] == [("tiny.gguf", "dequantized", None, True)]


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], (True, None)),
        (["--solver", "trm-sudoku6"], (False, ("trm-sudoku6",))),
        (["SmolLM2-135M-Instruct", "--solver", "trm-sudoku6"], (True, ("trm-sudoku6",))),
    ],
)
def test_serve_serves_what_is_named_and_the_default_model_where_nothing_is(
    arguments, served, monkeypatch
):
    def run(engine, server, listener, solvers):
        assert (engine is not None, solvers and solvers.models) == served
        return 0

    monkeypatch.setattr("detinfer.server.run.run_server", run)
    assert cli.main(["serve", "--port", "0", *arguments]) == 0


class _StubEngine:
    """Two increments for any prompt."""

    def __init__(self, config):
        self.tokenizer = SimpleNamespace(
            encode=lambda text, **options: list(text.encode()), chat_template=None
        )
        self.info = SimpleNamespace(system_fingerprint="detinfer-0.1.0-portable-1-abc")
        self.left = [("Par", None), ("is", "length")]

    def add_request(self, request_id, token_ids, params):
        self.request_id, self.params = request_id, params

    def step(self):
        from detinfer.engine.outputs import RequestOutput

        text, reason = self.left.pop(0)
        digest = "d" * 64 if reason else None
        output = RequestOutput(
            self.request_id, text, [1], None, reason, digest, self.params.seed, True, 2, 1
        )
        return [output]


def test_generate_prints_the_text_alone_to_a_pipe_and_the_digest_beside_it(monkeypatch, capsys):
    monkeypatch.setattr("detinfer.cli.generate.Engine", _StubEngine)
    assert cli.main(["generate", "--prompt", "hi"]) == 0
    out, err = capsys.readouterr()
    assert out == "Paris\n"
    assert err == f"digest {'d' * 64}  detinfer-0.1.0-portable-1-abc  length\n"


def test_generate_as_json_has_what_can_be_compared(monkeypatch, capsys):
    monkeypatch.setattr("detinfer.cli.generate.Engine", _StubEngine)
    assert cli.main(["generate", "--prompt", "hi", "--json", "--seed", "7"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "Paris"
    assert answer["token_ids"] == [1, 1]
    assert answer["prompt_token_ids"] == [104, 105]
    assert (answer["digest"], answer["seed"]) == ("d" * 64, 7)
    assert answer["finish_reason"] == "length"


def test_another_detinfer_on_the_path_costs_one_line(tmp_path):
    other = tmp_path / "detinfer"
    other.mkdir()
    (other / "__init__.py").write_text("")
    command = [sys.executable, cli.__file__, "--version"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(other) in done.stderr
