"""A histogram of plain numbers, in the form Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily


class Histogram:
    """Counts of values by upper bounds (inclusive), and their sum."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, so often."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def family(
        self, prefix: str, labels: Mapping[str, str], suffix: str = ""
    ) -> HistogramMetricFamily:
        """As Prometheus has it: each bucket holds those below it."""
        buckets: list[tuple[str, float]] = []
        total = 0
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, total))
        name = f"{prefix}:{self.name}{suffix}"
        family = HistogramMetricFamily(name, self.documentation, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self.sum)
        return family
