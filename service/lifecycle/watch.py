"""Whether a model that has just begun to serve must go.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from service.lifecycle.pulses import Outcomes

_MOST_SPOILT = 2  # more answers that are no probabilities are the model's doing, whoever asked


class Watch:
    """Of one order, for a while after the switch to it."""

    def __init__(self, number: int, until: float, most_faults: float, least_requests: int) -> None:
        """until: on the clock of `judge`;  most_faults: share of the requests;  least_requests: before that counts."""
        self._number, self.until = number, until
        self._most_faults, self._least_requests = most_faults, least_requests

    def judge(self, workers: Iterable[Outcomes]) -> str:
        """Why it must go; empty when it may stay."""
        mine = [worker for worker in workers if worker.number == self._number]
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
