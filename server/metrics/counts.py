"""What a server counts, with the buckets of vLLM's.

Plain numbers, touched from the event loop only and read when scraped: an observation costs well
under a microsecond, so that each token may have one. What the engine counts is read from its own
statistics, and so is exact.
"""

from __future__ import annotations

from collections import Counter

from detinfer.engine.process import Stepped
from detinfer.server.metrics.histogram import Histogram
from detinfer.server.metrics.solving import Solving

# fmt: off
_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
_INTER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)
_REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)
# A phase of a request may be a matter of milliseconds, or of hours.
_PHASE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, *_REQUEST)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LENGTH = [*(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 1_000_000]
# fmt: on


class Metrics:
    """What one server counts.

    Attributes:
        check_mismatches: deterministic answers that a check found to differ.
        solving: puzzles.
        requests: requests to the engine that have ended, by (mode, finish reason).
        http_requests: HTTP requests that have ended, by (method, route template, status).
    """

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds", "From a request's start to its first token.", _TTFT
        )
        self.inter_token_latency = Histogram(
            "inter_token_latency_seconds", "From one token to the next.", _INTER_TOKEN
        )
        self.e2e_request_latency = Histogram(
            "e2e_request_latency_seconds", "From a request's start to its last token.", _REQUEST
        )
        self.request_queue_time = Histogram(
            "request_queue_time_seconds", "From a request's start to its first step.", _PHASE
        )
        self.request_prefill_time = Histogram(
            "request_prefill_time_seconds", "From its first step to its first token.", _PHASE
        )
        self.request_decode_time = Histogram(
            "request_decode_time_seconds", "From its first token to its last.", _PHASE
        )
        self.request_prompt_tokens = Histogram(
            "request_prompt_tokens", "Tokens of a request's prompt.", _LENGTH
        )
        self.request_generation_tokens = Histogram(
            "request_generation_tokens", "Tokens of a request's answer.", _LENGTH
        )
        self.iteration_tokens = Histogram(
            "iteration_tokens", "Tokens that went through the model in a step.", _STEP_TOKENS
        )
        self.check_mismatches = 0
        self.solving = Solving()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.http_requests: Counter[tuple[str, str, str]] = Counter()

    def histograms(self) -> list[Histogram]:
        """All of the language model's."""
        return [one for one in vars(self).values() if isinstance(one, Histogram)]

    def on_step(self, step: Stepped) -> None:
        """Take note of one message of the engine."""
        if step.num_tokens:
            self.iteration_tokens.observe(step.num_tokens)
