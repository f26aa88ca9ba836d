"""Whether the executor still computes, asked by a request of our own after a step has failed.

A step that fails answers every active request with an error, and the executor goes on: with a
request that it cannot run (which the door should have refused) the next step succeeds, with a
broken GPU all of them fail.
"""

from __future__ import annotations

from llm_service.engines.tensorrt_llm.responses import Delta

CLIENT_ID = 0
# One may share its step with the request that broke the last one.
MAX_FAILED_COUNT = 3


class Probe:
    """The probe's state; the response thread's."""

    def __init__(self) -> None:
        self._is_running = False
        self._failed_count = 0

    def is_due(self, deltas: list[Delta]) -> bool:
        """Takes note of responses; returns whether a probe is to be sent now.

        Raises:
            RuntimeError: one after the other has failed.
        """
        for delta in deltas:
            if delta.client_id == CLIENT_ID and delta.is_final:
                self._is_running = False
                self._failed_count = 0 if delta.error is None else self._failed_count + 1
        if self._failed_count == MAX_FAILED_COUNT:
            raise RuntimeError(f"{MAX_FAILED_COUNT} probes in a row have failed")
        is_due = not self._is_running and any(delta.is_step_failure for delta in deltas)
        self._is_running |= is_due
        return is_due
