"""Of `farm bench faults`: another model with four workers: who answers with which, and whether an answer mixes two.

Letters: R rows of an answer.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.bench.faults_answers import is_good
from loadtest.bench.faults_lab import CANDIDATES, CLIENTS, Ground, unanswered
from loadtest.bench.faults_models import Activation, Models, must_activate, serving_models, two_models
from loadtest.bench.service_lab import BenchError
from loadtest.bench.service_stores import AUTHORS, NOW_MS
from loadtest.bench.store_data import author_ids, user_ids
from loadtest.load.figures import LoadResult
from loadtest.load.run import Load, loading
from loadtest.load.trace import Kind
from loadtest.load.traffic import rank_bodies
from loadtest.process import ServiceProcess
from model.figures import claim

WORKERS = 4
TOP_K = 5  # few, so that every answer can be kept

_QUESTIONS = 64
_AROUND_S = 1.0  # of load before and after an activation
_LONGEST_S = 20.0
_SAME = 1e-4  # scores of one model differ less, whatever the batch was

Scores = dict[str, list[np.ndarray]]
"""Of each version: the scores [R] of every question."""


def workers(ground: Ground) -> dict[str, Any]:
    """Activations in turn, under load of questions whose answers by either model are known."""
    lab, sizes = ground.lab, ground.sizes
    with tempfile.TemporaryDirectory() as name:
        models = two_models(lab, Path(name))
        ids = user_ids(lab.users), author_ids(AUTHORS)
        bodies = rank_bodies(Path(name) / "bodies", *ids, [CANDIDATES], _QUESTIONS, TOP_K, NOW_MS, seed=3)
        both = {lab.cores.service, lab.cores.others}
        with serving_models(lab, models, "--workers", str(WORKERS), cpus=both) as service:
            known = _known(service.process, models, bodies.read_bytes().splitlines())
            seconds = sizes.activations * (_LONGEST_S + _AROUND_S)
            load = Load(f"{service.process.url}/rank", bodies, CLIENTS, seconds, 0.0, keep_every=1, trace=True)
            with loading(load) as running:
                running.wait_begun()
                changes = [_change(service.process, models, number) for number in range(sizes.activations)]
                running.stop()
                result = running.result()
    return {
        "workers": WORKERS,
        "changes_s": [change.told - change.asked for change in changes],
        "answers": len(result.answers),
        "statuses": result.statuses,
        "failed": unanswered(result),
        "old_answers": _old_answers(result, changes),
        "mixed_answers": len(mixed_answers(result, known)),
        "of_the_other_model": sum(mixed_answers(result, known)),
    }


def workers_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"{WORKERS} workers, {len(found['changes_s'])} activations: "
    return [
        claim(text + "answers of the old model after the acknowledgement", found["old_answers"], "<=", 0),
        claim(text + "answers that mix two models", found["mixed_answers"], "<=", 0),
        claim(text + "requests that failed", found["failed"], "<=", 0),
    ]


def mixed_answers(result: LoadResult, known: Scores) -> list[bool]:
    """Of each answer whose scores are not those of the model that it names: whether they are all another's."""
    found = []
    for answer in result.answers:
        told = json.loads(answer.text)
        scores = _scores(told)
        if not _same(scores, known[told["model_version"]][answer.body]):
            found.append(any(_same(scores, every[answer.body]) for every in known.values()))
    return found


def _change(service: ServiceProcess, models: Models, number: int) -> Activation:
    """The second model is active when the first change begins."""
    time.sleep(_AROUND_S)
    change = must_activate(service, models.versions[number % 2])
    time.sleep(_AROUND_S)
    return change


def _known(service: ServiceProcess, models: Models, questions: Sequence[bytes]) -> Scores:
    known: Scores = {}
    for version in models.versions:
        must_activate(service, version)
        known[version] = [_scores(_ask(service, question)) for question in questions]
    first, second = known.values()
    if any(_same(one, other) for one, other in zip(first, second, strict=True)):
        raise BenchError("the two models answer alike")
    return known


def _old_answers(result: LoadResult, changes: list[Activation]) -> int:
    """Answers of another model than the acknowledged, to requests that were sent before the next one was asked for."""
    trace, ends, count = result.traced(), [*(change.asked for change in changes[1:]), float("inf")], 0
    for change, end in zip(changes, ends, strict=True):
        later = trace.where((trace.sent >= change.told) & (trace.done < end)).only(is_good)
        count += len(later) - len(later.only(partial(_is_of, change.version)))
    return count


def _is_of(version: str, kind: Kind) -> bool:
    return kind.version == version


def _ask(service: ServiceProcess, question: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{service.url}/rank", question, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _scores(answer: dict[str, Any]) -> np.ndarray:
    return np.array([row["score"] for row in answer["ranking"]])


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() < _SAME)
