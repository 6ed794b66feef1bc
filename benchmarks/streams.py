"""What open streams cost the engine: step time behind the server against step time alone.

    python -m benchmarks.streams --json benchmarks/results/streams.json

Both engines decode the same number of rows. Of the open streams only one is read as it comes, so
that the client takes no CPU to speak of; its gaps between tokens are the steps.
"""

from __future__ import annotations

import json
import socket
import time
from itertools import pairwise

from benchmarks.common import EngineDriver, arguments, median, prompt_ids, report
from benchmarks.serving import serving


def open_stream(port: int, prompt: list[int], tokens: int) -> socket.socket:
    """Return a streaming request, sent and not yet read."""
    body = json.dumps(
        {"input_ids": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    ).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    connection.sendall(
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    )
    return connection


def behind_server(port: int, prompts: list[list[int]], tokens: int) -> float:
    """Median seconds between the tokens of one stream while all are open."""
    streams = [open_stream(port, prompt, tokens) for prompt in prompts]
    arrivals = []
    while chunk := streams[-1].recv(65536):
        if b"data:" in chunk:
            arrivals.append(time.perf_counter())
    for stream in streams[:-1]:
        received = b""
        while chunk := stream.recv(65536):
            received += chunk
        assert b"[DONE]" in received, received[-200:]
        stream.close()
    streams[-1].close()
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert len(gaps) > tokens // 2, "tokens came in lumps"
    return median(gaps[2:-2])


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=3)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    prompts = [prompt_ids(16, seed) for seed in range(args.streams)]
    alone: list[float] = []
    streaming: list[float] = []
    driver = EngineDriver(
        model=args.model, weights=args.weights, max_num_seqs=args.streams, allow_fast=False
    )
    with serving(args.model, "--no-fast-mode", "--weights", args.weights) as server:
        for _ in range(args.repeats):
            alone.append(driver.decode(prompts, args.tokens, True))
            streaming.append(behind_server(server.port, prompts, args.tokens))
    row = {
        "streams": args.streams,
        "alone_ms": 1e3 * median(alone),
        "behind_server_ms": 1e3 * median(streaming),
        "growth_percent": 100 * (median(streaming) / median(alone) - 1),
    }
    extra = {"weights": args.weights, "repeats": args.repeats}
    report("step time while streams are open", [row], extra, args.json)


if __name__ == "__main__":
    main()
