"""What Prometheus is told of callers, by the names of their keys."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.access.authentication import FAULTS, AuthenticationFault
from gateway.access.callers import ANYBODY
from gateway.record import RequestRecord

# Keys come and go; each name that was ever counted is a series for as long as the process lives.
MAX_NAME_COUNT = 1000
OTHER = "other"
KINDS = ("prompt", "cached", "output")


class CallerMetrics:
    """The counters of callers; where no keys are asked for, they stay empty."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "internvl_gateway_caller_requests",
            "Requests by the name of the key that came with them.",
            ["caller", "status"],
            registry=registry,
        )
        tokens = Counter(
            "internvl_gateway_caller_tokens",
            "Tokens of complete answers by the name of the key: in their prompts, of these from the"
            " KV cache, and in their outputs.",
            ["caller", "kind"],
            registry=registry,
        )
        images = Counter(
            "internvl_gateway_caller_images",
            "Images that requests referred to, by the name of the key.",
            ["caller"],
            registry=registry,
        )
        self._failures = Counter(
            "internvl_gateway_authentication_failures",
            "Requests that were refused for want of a key, and why.",
            ["reason"],
            registry=registry,
        )
        self._file_refused = Gauge(
            "internvl_gateway_api_keys_file_refused",
            "1: the file of keys cannot be used as it is now, and those of before still hold.",
            registry=registry,
        )
        # Found once: that takes longer than to count. Names are bounded, and so are these.
        self._requests_of = cache(requests.labels)
        self._tokens_of = cache(tokens.labels)
        self._images_of = cache(images.labels)
        self._names: set[str] = set()
        for fault in FAULTS:  # before the first one, which would be no rise otherwise
            self._failures.labels(fault)

    def count_request(self, status: int, record: RequestRecord) -> None:
        """Counts a request that is over, if its caller is known."""
        if record.caller is None or record.caller == ANYBODY.name:
            return
        caller = self._label(record.caller)
        self._requests_of(caller, status).inc()
        if record.image_count:
            self._images_of(caller).inc(record.image_count)
        for kind in KINDS:
            if count := getattr(record, f"{kind}_token_count"):
                self._tokens_of(caller, kind).inc(count)

    def _label(self, name: str) -> str:
        if name not in self._names and len(self._names) >= MAX_NAME_COUNT:
            return OTHER
        self._names.add(name)
        return name

    def count_failure(self, fault: AuthenticationFault) -> None:
        """Counts a request that has no key of ours."""
        self._failures.labels(fault).inc()

    def note_file(self, is_refused: bool) -> None:
        """Says whether the file of keys could not be used when it was read last."""
        self._file_refused.set(is_refused)
