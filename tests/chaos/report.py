"""What a run has shown, as tables."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable

from protos.process.settings import MIB
from tests.chaos.campaign import Report


def written(report: Report) -> str:
    """Returns the tables of a run."""
    ledger = report.ledger
    statuses = {status: count for status, count in ledger.statuses.items() if status > 200}
    lines = [f"seed {ledger.seed}, {len(ledger.endings)} requests, {report.seconds:.0f} s"]
    lines += _table("ending", ((one.value, count) for one, count in ledger.counts().items()))
    lines += _table("HTTP errors", ((str(one), count) for one, count in statuses.items()))
    lines += _table("manner of the client", report.manner_counts.items())
    lines += ["", f"  {'fault':34}{'count':>6}{'answers again after':>22}"]
    for kind, count in sorted(Counter(kind for kind, _ in report.proofs).items()):
        lines.append(f"  {kind:34}{count:>6}{report.recovery_seconds[kind]:>20.1f} s")
    p50, p99 = percentiles(ledger.seconds)
    lines += ["", f"  whole answers: p50 {p50:.2f} s, p99 {p99:.2f} s", ""]
    for member, after in report.after.items():
        before = report.before[member]
        lines.append(
            f"  {member!s:9} {before.byte_count / MIB:6.0f} MiB, {before.thread_count} threads,"
            f" {before.descriptor_count} descriptors before;"
            f" {after.byte_count / MIB:.0f}, {after.thread_count}, {after.descriptor_count} after"
        )
        if report.byte_counts:
            lines.append(f"{'':11}grew by {report.growth(member):.2%} after the warm-up")
    return "\n".join(lines)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Returns the median and the 99th percentile."""
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return hundredths[49], hundredths[98]


def _table(title: str, rows: Iterable[tuple[str, int]]) -> list[str]:
    return ["", f"  {title}", *(f"    {name:38}{count:>6}" for name, count in sorted(rows))]
