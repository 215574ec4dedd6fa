"""Of `farm bench service`: what kept states of users save, and what keeping them costs where they do not help."""

from __future__ import annotations

import json
import urllib.request
from functools import partial
from typing import Any

from loadtest.bench.service_lab import Bodies, Lab, Service, interleave, summary
from loadtest.bench.service_saturated import CANDIDATES, CLIENTS
from loadtest.bench.service_sizes import Sizes
from loadtest.bench.service_stores import Backend
from model.figures import claim

_COMPARED = 50  # answers
_COST_BOUND = 1.03  # times the CPU without a cache, where nothing is ever found in it
_BACKEND: Backend = "lmdb"  # nothing else takes time there


def cache(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """Requests/s with the cache as it comes and without one, where users by Zipf's law come again within a lag quantum,
    and where no state comes again."""
    repeated = lab.bodies([CANDIDATES], sizes.bodies, step_ms=0)
    fresh = lab.bodies([CANDIDATES], sizes.bodies)
    kept = lab.service(_BACKEND)
    with lab.another(lab.store(_BACKEND), FARM_STATE_CACHE_MB="0") as without:
        found: dict[str, Any] = {
            name: _compare(kept, without, bodies, sizes) for name, bodies in (("zipf", repeated), ("fresh", fresh))
        }
        found["different_answers"] = _different(kept, without, repeated)
    return found


def _compare(kept: Service, without: Service, bodies: Bodies, sizes: Sizes) -> dict[str, Any]:
    ways = {name: partial(service.block, bodies, CLIENTS) for name, service in (("on", kept), ("off", without))}
    blocks = interleave(ways, sizes.rounds, sizes.seconds)
    on, off = summary(blocks["on"]), summary(blocks["off"])
    gain = on["per_second"] / off["per_second"]
    cost = on["cpu_ms"] / off["cpu_ms"]
    return {"on": on, "off": off, "gain": gain, "cpu_ratio": cost, "hit_share": on["state_hit_share"]}


def _different(kept: Service, without: Service, bodies: Bodies) -> int:
    """Rankings that are not the same bit for bit, from a kept state and from one computed for the request."""
    lines = bodies.path.read_bytes().splitlines()[:_COMPARED]
    for line in lines:
        _ranking(kept, line)
    return sum(_ranking(kept, line) != _ranking(without, line) for line in lines)


def _ranking(service: Service, body: bytes) -> Any:
    request = urllib.request.Request(f"{service.process.url}/rank", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["ranking"]


def cache_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    zipf, fresh = found["zipf"], found["fresh"]
    return [
        claim(f"state cache: req/s with it / without, {zipf['hit_share']:.0%} hits", zipf["gain"], ">=", 1.0),
        claim("state cache: CPU of a request with it / without, no hit", fresh["cpu_ratio"], "<=", _COST_BOUND),
        claim("state cache: rankings that differ from those without it", found["different_answers"], "<=", 0),
    ]
