"""Whether a model that has just begun to serve must go.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from service.lifecycle.pulses import Outcomes, Pulse

_MOST_SPOILT = 2  # more answers that are no probabilities are the model's doing, whoever asked


class Watch:
    """Of one order, for a while after the switch to it."""

    def __init__(self, number: int, until: float, most_faults: float, least_requests: int) -> None:
        """until: on the clock of `judge`;  most_faults: share of the requests;  least_requests: before that counts."""
        self._number, self.until = number, until
        self._most_faults, self._least_requests = most_faults, least_requests

    def judge(self, workers: Iterable[Pulse]) -> str:
        """Why it must go; empty when it may stay.

        Each model of a split is judged by its own requests: in those of all, a small one's failures would be lost.
        """
        pulses = list(workers)
        of_most = self._judge([pulse.outcomes for pulse in pulses])
        of_split = self._judge([pulse.split for pulse in pulses])
        return of_most or (of_split and f"the split's model: {of_split}")

    def _judge(self, model: Iterable[Outcomes]) -> str:
        mine = [worker for worker in model if worker.number == self._number]
        requests, faults, spoilt = (
            sum(getattr(one, name) for one in mine) for name in ("requests", "faults", "spoilt")
        )
        if spoilt > _MOST_SPOILT:
            return f"{spoilt} of {requests} answers were no probabilities"
        if requests >= self._least_requests and faults > self._most_faults * requests:
            return f"{faults} of {requests} requests failed, at most {self._most_faults:.3g} of them may"
        return ""

    def is_over(self, now: float) -> bool:
        return now >= self.until
