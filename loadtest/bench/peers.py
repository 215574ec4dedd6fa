"""`farm bench peers`: the same model, store and answers behind what people would use instead.

Every server has one worker process on the same core; the load generator and the store's server have the other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from loadtest.bench.cores import Cores
from loadtest.bench.memory import descendants
from loadtest.bench.parts import choose
from loadtest.bench.peers_answers import OtherAnswerError, require_same
from loadtest.bench.peers_blocks import CLIENTS, Contestant, Traffic, closed_blocks, open_blocks
from loadtest.bench.peers_claims import claims_of, figures_of
from loadtest.bench.peers_environments import PEERS, peer_python
from loadtest.bench.peers_servers import PeerFailedError, ask, running_peer
from loadtest.bench.service_stores import AUTHORS, NOW_MS, filled_store
from loadtest.bench.store_data import author_ids, user_ids
from loadtest.bench.untrained import given_or_untrained
from loadtest.load.traffic import rank_bodies
from loadtest.peers.model import STORE_SETTINGS, PeerSettings
from loadtest.process import PATIENT, running_service
from loadtest.redis_servers import free_port
from model.figures import report

CANDIDATES, TOP_K = 200, 50
STEP_MS = 61_000  # between requests: beyond the lag quantum, so that the service keeps no state that it could use again
OPEN_SHARE = 0.6  # of the best peer's saturation: the equal load
_CARRIES = 1.2  # times that load: who saturates below it is not asked to carry it
_SEED = 1

Way = Literal["tiled", "towers"]
WAYS: tuple[Way, ...] = ("towers", "tiled")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    users: int = 5_000
    bodies: int = 10_000
    compared: int = 40  # requests whose answers are compared
    rounds: int = 10  # blocks of each server
    seconds: float = 2.5  # of a block
    tiled_seconds: float = 4.0  # of a block with tiled histories: 15 requests/s in batches of 8
    open_rounds: int = 10
    open_seconds: float = 4.0


QUICK = Sizes(
    users=1_000, bodies=2_000, compared=8, rounds=3, seconds=0.8, tiled_seconds=3.0, open_rounds=2, open_seconds=1.0
)


def run(artifact: Path | None, only: str | None, environments: Path, quick: bool) -> dict[str, Any]:
    """Against all peers, or some, separated by commas.  Without an artifact: an untrained FARM (its speed is the same).

    environments: folder of the peers' virtual environments, which are made when they are not there.
    UnknownPartError when there is no peer of a name.
    """
    asked = list(PEERS) if only is None else only.split(",")
    names = [name for one in asked for name in choose(one.strip(), PEERS, kind="peer")]
    with given_or_untrained(artifact) as path:
        return measure(path, names, environments, QUICK if quick else Sizes())


def measure(artifact: Path, names: Sequence[str], environments: Path, sizes: Sizes) -> dict[str, Any]:
    """The report of one run."""
    failed: dict[str, str] = {}
    pythons = _environments(names, environments, failed)
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as scratch, ExitStack() as stack:
        run = _Run(stack, artifact, Path(scratch), sizes)
        ours = run.service()
        rivals = run.rivals(ours, pythons, failed)
        rate = run.measure(ours, rivals)
        kept = run.with_kept_states(ours)
    figures = figures_of(ours, rivals, failed)
    figures |= {"open_rate": rate, "service_with_kept_states": kept, "failed": failed}
    settings = {"artifact": artifact.name, "candidates": CANDIDATES, "top_k": TOP_K, "authors": AUTHORS}
    settings |= {"clients": CLIENTS, "cores": asdict(run.cores), "peers": list(names), **asdict(sizes)}
    return report("peers", settings, figures, claims_of(names, figures))


def _environments(names: Sequence[str], folder: Path, failed: dict[str, str]) -> dict[str, Path]:
    """The interpreter of each peer that can be installed."""
    pythons = {}
    for name in names:
        try:
            pythons[name] = peer_python(PEERS[name].app, folder)
        except PeerFailedError as error:
            failed[name] = str(error)
            _say(str(error))
    return pythons


class _Run:
    """Servers of one run, all stopped but the one that has its block."""

    def __init__(self, stack: ExitStack, artifact: Path, scratch: Path, sizes: Sizes) -> None:
        self.cores = Cores.of_this_process()
        self._stack, self._artifact, self._sizes = stack, artifact, sizes
        self._store = stack.enter_context(filled_store("redis", sizes.users, scratch, {self.cores.others}))
        self._new = self._traffic(scratch / "new.jsonl", STEP_MS)
        self._kept = self._traffic(scratch / "kept.jsonl", 0)
        self._probes = self._new.path.read_bytes().splitlines()[: sizes.compared]

    def _traffic(self, path: Path, step_ms: int) -> Traffic:
        ids = user_ids(self._sizes.users), author_ids(AUTHORS)
        rank_bodies(path, *ids, [CANDIDATES], self._sizes.bodies, TOP_K, NOW_MS, _SEED, step_ms)
        return Traffic(path, self._sizes.bodies)

    def service(self) -> Contestant:
        options: dict[str, Any] = {"cpus": {self.cores.service}, **PATIENT, **STORE_SETTINGS}
        process = self._stack.enter_context(running_service(self._artifact, self._store, **options))
        ours = Contestant("service", process.url, lambda: descendants(process.process.pid))
        self._stack.callback(ours.resume)  # a process that is stopped does not end
        return ours

    def rivals(self, ours: Contestant, pythons: dict[str, Path], failed: dict[str, str]) -> list[Contestant]:
        """Those that start and answer what the service answers; the others are in `failed`."""
        answers = [ask(ours.url, probe) for probe in self._probes]
        ours.measure_idle()
        started = []
        for name, python in pythons.items():
            for way in WAYS:
                try:
                    one = self._rival(name, way, python, ours, answers)
                except (PeerFailedError, OtherAnswerError, OSError) as error:
                    failed[f"{name} {way}"] = str(error)
                    _say(f"{name} {way}: {error}")
                else:
                    started.append(one)
        return started

    def _rival(self, name: str, way: Way, python: Path, ours: Contestant, answers: Sequence[bytes]) -> Contestant:
        peer = PEERS[name]
        settings = PeerSettings(self._artifact, self._store, way == "tiled", free_port())
        options = {**peer.options, **{name: str(free_port()) for name in peer.ports}}
        running = running_peer(python, peer.app, settings, self._probes[0], {self.cores.service}, options)
        server = self._stack.enter_context(running)
        least_s = self._sizes.tiled_seconds if way == "tiled" else 0.0
        one = Contestant(f"{name} {way}", server.url, server.pids, least_s)
        with ThreadPoolExecutor(CLIENTS) as clients:  # at once, so that batches are compared too
            theirs = list(clients.map(partial(ask, one.url), self._probes))
        one.difference = max(map(require_same, answers, theirs))
        one.measure_idle()
        _say(f"{one.name}: answers as the service does")
        return one

    def measure(self, ours: Contestant, rivals: Sequence[Contestant]) -> float | None:
        """Saturated, then at equal load: requests/s, None when no peer is there."""
        sizes, core = self._sizes, self.cores.others
        closed_blocks([ours, *rivals], self._new, core, sizes.rounds, sizes.seconds)
        saturation = {
            one.name: median(block.per_second for block in one.closed)
            for one in rivals
            if one.closed and one.error is None and one.name.endswith(" towers")
        }
        if not saturation:
            return None
        rate = OPEN_SHARE * max(saturation.values())
        able = [one for one in rivals if saturation.get(one.name, 0.0) >= _CARRIES * rate]
        open_blocks([ours, *able], self._new, core, sizes.open_rounds, sizes.open_seconds, rate)
        return rate

    def with_kept_states(self, ours: Contestant) -> dict[str, Any]:
        """Saturated by users who come again within the lag quantum, whose states the service keeps.  No claim."""
        again = Contestant("service with kept states", ours.url, ours.pids)
        closed_blocks([again], self._kept, self.cores.others, max(2, self._sizes.rounds // 3), self._sizes.seconds)
        return {"blocks": [asdict(block) for block in again.closed], "error": again.error}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
