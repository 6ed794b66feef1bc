"""The ``detinfer`` command.

Commands import what they need when they run: ``detinfer --help`` loads neither torch nor FastAPI.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

try:
    from detinfer import __version__
    from detinfer.cli.command_flags import add_chat_flags, add_check_flags, add_generate_flags
    from detinfer.cli.flags import (
        add_engine_flags,
        add_server_flags,
        add_weights_flags,
        engine_config,
        server_config,
    )
    from detinfer.cli.parser import USAGE_ERROR, CommandParser, Parser, add_model_argument
    from detinfer.cli.preflight import check_start
    from detinfer.cli.solve_command import add_solve_flags, run_solve
    from detinfer.cli.solver_flags import check_solver_flags, solver_config
    from detinfer.cli.verify import add_verify_flags
    from detinfer.cli.verify import run as run_verify
    from detinfer.config import EngineConfig
    from detinfer.errors import ConfigError, DetinferError
    from detinfer.garbage import uncollected
    from detinfer.logs import log, logging_to_stderr
    from detinfer.params import SamplingParams
except ImportError as error:  # the PyPI name `detinfer` is somebody else's package
    found = getattr(sys.modules.get("detinfer"), "__path__", ["?"])[0]
    print(f"detinfer: error: {error}; another detinfer shadows ours at {found}", file=sys.stderr)
    raise SystemExit(2) from None

INTERRUPTED = 130
BENCHMARKS = (
    "peers",
    "scaling",
    "quality",
    "large",
    "recursive",
    "slowdown",
    "features",
    "grammars",
    "streams",
    "http_overhead",
    "server_load",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 1 (``check`` found a difference, or the compile audit something) or
        2 (usage or environment).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = _parser()
        if not arguments:
            parser.print_help()
            return 0
        args = parser.parse_args(arguments)
        status: int = args.run(args)
        return status
    except DetinferError as error:
        print(f"detinfer: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; leave nothing for the interpreter to flush at exit.
        sys.stdout = None
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="detinfer", description="LLM inference whose answers are bitwise reproducible."
    )
    parser.add_argument("--version", action="version", version=f"detinfer {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )

    for name, text, add_flags, run in (
        ("serve", "start the HTTP server", add_server_flags, _serve),
        ("generate", "answer one prompt", add_generate_flags, _generate),
        ("chat", "talk to the model in this terminal", add_chat_flags, _chat),
        ("check", "run the same requests under changing loads", add_check_flags, _check),
    ):
        command = commands.add_parser(name, help=text)
        add_engine_flags(command)
        add_flags(command)
        command.set_defaults(run=run)

    solve = commands.add_parser("solve", help="solve puzzles with a tiny recursive model")
    add_solve_flags(solve)
    solve.set_defaults(run=run_solve)

    verify = commands.add_parser("verify", help="replay a receipt")
    add_verify_flags(verify)
    add_engine_flags(verify)
    verify.set_defaults(run=run_verify)

    doctor = commands.add_parser("doctor", help="what this machine can run")
    add_model_argument(doctor, "what to load, a folder, a .gguf file or a hub id")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--compile-audit",
        action="store_true",
        help="compile every GPU kernel, without a GPU, and check its machine code instead",
    )
    doctor.add_argument(
        "--full",
        action="store_true",
        help="audit also gfx942, without alignment, and in both 16-bit types",
    )
    doctor.set_defaults(run=_doctor)

    pull = commands.add_parser("pull", help="fetch a model now")
    add_model_argument(pull, "a hub id")
    add_weights_flags(pull)
    pull.set_defaults(run=_pull)

    bench = commands.add_parser("bench", help="measure, in a checkout of the source")
    bench.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    options = bench.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        metavar="OPTIONS",
        help="the benchmark's own; NAME --help tells them",
    )
    options.required = False  # as argparse of Python 3.11 has it
    bench.set_defaults(run=_bench)

    return parser


def _serve(args: argparse.Namespace) -> int:
    with logging_to_stderr(args.log_format, args.log_level):
        try:
            engine, server = engine_config(args), server_config(args)
            solvers = solver_config(args, engine)
            # Solvers alone have no need of a language model that nobody named.
            served = None if solvers is not None and engine.model is None else engine
            if served is not None:
                check_start(served)
            from detinfer.server.http.listener import bind

            with bind(server.host, server.port) as listener:
                with uncollected():
                    from detinfer.server.run import run_server

                return run_server(served, server, listener, solvers)
        except DetinferError as error:
            if args.log_format == "text":
                raise  # said as every command says it
            log.error("%s", error)
            return USAGE_ERROR


def _generate(args: argparse.Namespace) -> int:
    if args.receipt_key is not None and args.receipt is None:
        raise ConfigError("--receipt-key: expected beside --receipt")
    config = engine_config(args)
    params = _sampling_params(args, config)
    check_start(config)
    with uncollected():
        from detinfer.cli.generate import generate

    return generate(
        config,
        args.prompt,
        params,
        as_json=args.json,
        chat=args.chat,
        receipt=args.receipt,
        receipt_key=args.receipt_key,
    )


def _chat(args: argparse.Namespace) -> int:
    config = engine_config(args)
    params = _sampling_params(args, config)
    check_start(config)
    with uncollected():
        from detinfer.cli.chat import chat

    return chat(config, params, args.system)


def _sampling_params(args: argparse.Namespace, config: EngineConfig) -> SamplingParams:
    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        deterministic=config.default_deterministic,
    )


def _check(args: argparse.Namespace) -> int:
    if args.compare is not None:
        from detinfer.cli.compare import compare

        return compare(*args.compare)
    if args.url is not None and args.model is not None:
        raise ConfigError("MODEL: got it beside --url, expected one of them")
    if args.report is not None and not args.report.endswith((".html", ".json", ".xml")):
        raise ConfigError(f"--report: got {args.report!r}, expected a .html, .json or .xml file")
    if args.repro is not None and args.url is not None:
        raise ConfigError("--repro: a load is played in this process, expected no --url")
    if (args.golden is not None) != (args.update or args.assert_golden):
        raise ConfigError("--golden: expected a file, and --update or --assert")
    if args.golden is not None and args.mode == "fast":
        raise ConfigError("--golden: fast answers have no digest that stands still")
    config = engine_config(args)
    if args.solver is not None:
        check_solver_flags(args)
    elif args.url is None:
        check_start(config)
    with uncollected():
        from detinfer.cli.check import run

    return run(args)


def _doctor(args: argparse.Namespace) -> int:
    if args.compile_audit:
        from detinfer.compile_audit.command import run as run_audit

        return run_audit(full=args.full, as_json=args.json)
    if args.full:
        raise ConfigError("--full: expected beside --compile-audit")
    from detinfer.cli.doctor import run

    return run(args.model, as_json=args.json)


def _pull(args: argparse.Namespace) -> int:
    from detinfer.checkpoint.loader import resolve_model

    files = resolve_model(args.model, weights=args.weights, quantize=args.quantize, progress=True)
    print(f"{files.name}: {files.folder}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from detinfer.cli.bench import run

    return run(args.name, args.options)
