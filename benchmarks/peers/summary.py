"""What is made of the rounds: ratios and their goals, shares of the machine's limits, a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import chart, page
from benchmarks.common import median
from benchmarks.limits import Limits
from benchmarks.peers.phases import FAR, NEAR, Phase
from benchmarks.roofline import Model

Rounds = dict[str, dict[str, list[float]]]  # tokens a second, by row and engine
Rows = list[dict[str, Any]]

OURS = {"detinfer packed": "packed", "detinfer bf16": "dequantized"}  # as --weights has them
# Which of ours stands beside a peer: the one that reads the same weights.
BESIDE = {
    "openvino": "detinfer packed",
    "llama.cpp": "detinfer packed",
    "vllm bf16": "detinfer bf16",
    "transformers fp32": "detinfer bf16",
    "transformers bf16": "detinfer bf16",
}
# What we mean to reach, times the peer's rate.
GOALS = {
    "decode, batch 1": {"llama.cpp": 1.2, "openvino": 1.3, "vllm bf16": 1.5},
    "decode, batch 8": {"llama.cpp": 3, "openvino": 1.2, "vllm bf16": 1.4},
    "decode, batch 32": {"llama.cpp": 4, "openvino": 1.3, "vllm bf16": 1.05},
    "prefill, 512 tokens": {"llama.cpp": 7, "openvino": 1.05, "vllm bf16": 1},
    "prefill, 32 x 64 tokens": {"llama.cpp": 7, "openvino": 1.05, "vllm bf16": 0.95},
    "prefill, 4,096 tokens": {"openvino": 1.1},
    "prefill, 7,680 tokens": {"openvino": 1.1},
}


def ratios(rounds: Rounds) -> Rows:
    """Return our median rate over each peer's, and the least and most of any one round."""
    rows = []
    for row, rates in rounds.items():
        for peer, ours in BESIDE.items():
            if peer in rates and ours in rates:
                each = [a / b for a, b in zip(rates[ours], rates[peer], strict=True)]
                ratio = median(rates[ours]) / median(rates[peer])
                goal = GOALS.get(row, {}).get(peer)
                rows.append(
                    {
                        "phase": row,
                        "ours": ours,
                        "peer": peer,
                        "ratio": ratio,
                        "least": min(each),
                        "most": max(each),
                        "goal": goal,
                        "reached": None if goal is None else ratio >= goal,
                    }
                )
    return rows


def roofline(
    rounds: Rounds,
    phases: Sequence[Phase],
    models: Mapping[str, Model],
    step: int,
    limits: Limits,
) -> Rows:
    """Return what each row of ours must do, what the machine could, and the share reached.

    The row of long contexts has also the share of the bandwidth at which its cache is read.
    """
    rows = []
    for phase in phases:
        for name, model in models.items():
            for row, (tokens, work) in phase.work(model, step).items():
                rates = rounds.get(row, {})
                if name not in rates:
                    continue
                most, near = tokens / work.seconds(limits), rounds.get(NEAR.name, {})
                told = {
                    "phase": row,
                    "engine": name,
                    "tokens": tokens,
                    **work._asdict(),
                    "at_most": most,
                    "share": median(rates[name]) / most,
                }
                if row == FAR.decoded and name in near:
                    ends = [(p.context, 1 / median(rounds[p.name][name])) for p in (NEAR, FAR)]
                    told["kv_share"] = model.kv_share(ends[0], ends[1], limits)
                rows.append(told)
    return rows


def _range(values: Sequence[float]) -> str:
    low, middle, high = (page.shown(of(values)) for of in (min, median, max))
    return f"{middle} ({low}–{high})"


def _rate_rows(rounds: Rounds) -> Rows:
    names = [name for name in (*OURS, *BESIDE) if any(name in of for of in rounds.values())]
    return [
        {"": row, **{name: _range(of[name]) if name in of else "" for name in names}}
        for row, of in rounds.items()
    ]


def _ratio_rows(ratios: Rows) -> Rows:
    peers = [name for name in BESIDE if any(row["peer"] == name for row in ratios)]
    made: dict[str, dict[str, str]] = {}
    for row in ratios:
        told = f"{row['ratio']:.2f}x ({row['least']:.2f}–{row['most']:.2f})"
        if row["goal"] is not None:
            told += f", {'meets' if row['reached'] else '**misses**'} {row['goal']:g}x"
        made.setdefault(row["phase"], dict.fromkeys(peers, ""))[row["peer"]] = told
    return [{"": phase, **cells} for phase, cells in made.items()]


def _roofline_rows(roofline: Rows) -> Rows:
    return [
        {
            "": row["phase"],
            "engine": row["engine"],
            "MB": row["bytes"] / 1e6,
            "int8 multiply-adds, 10^9": row["int8"] / 1e9,
            "binary32": row["float32"] / 1e9,
            "tokens/s at most": row["at_most"],
            "share reached": f"{row['share']:.0%}",
            "cache read at": f"{row['kv_share']:.0%} of bandwidth" if "kv_share" in row else "",
        }
        for row in roofline
    ]


def parts(
    rounds: Rounds,
    ratios: Rows,
    roofline: Rows,
    limits: dict[str, float],
    missing: dict[str, str],
    digests: dict[str, dict[str, str]],
) -> list[str]:
    """Return the page's parts, as Markdown."""
    made = [
        "Tokens per second: medians, and the least and most, of interleaved rounds.",
        page.table(_rate_rows(rounds)),
    ]
    made += [f"Missing: {name}: {why}" for name, why in missing.items()]
    if ratios:
        made += [
            "Ours over a peer's: of medians, and of any one round.",
            page.table(_ratio_rows(ratios)),
        ]
    if roofline:
        made += [
            "What a step, or all of a prefill, must read and multiply, and what would take this "
            "machine longest: {bandwidth:.3g} GB/s, {int8:.3g} int8 and {float32:.3g} binary32 "
            "multiply-adds a nanosecond, measured.".format(
                **{name: value / 1e9 for name, value in limits.items()}
            ),
            page.table(_roofline_rows(roofline)),
        ]
    told = [
        {"digests, equal in every round": phase, "engine": name, "SHA-256": f"`{digest}`"}
        for phase, of in digests.items()
        for name, digest in of.items()
        if digest
    ]
    return made + ([page.table(told)] if told else [])


def picture(title: str, rounds: Rounds) -> str:
    """Draw each row's rates."""
    return chart.bars(
        title,
        {
            row: [
                chart.Bar(name, median(of), min(of), max(of), name in OURS)
                for name, of in rates.items()
            ]
            for row, rates in rounds.items()
        },
    )
