"""What a service knows that hears no news, against a look at every sample and event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_store.schema import DOMAINS
from model.datasets.prepared import Prepared
from model.datasets.samples import gather
from model.report.degraded import WHOLE, by_condition, print_conditions
from model.report.stale import NAMES, STALE_AUTHORS, stale_authors, stale_conditions, stale_histories
from model.train import load_model

MINUTE_MS = 60_000


@pytest.mark.parametrize("minutes", [1, 30])
def test_stale_histories_end_that_much_earlier(prepared: Prepared, minutes: int) -> None:
    rows = prepared.rows("test")[::7]
    stale = stale_histories(prepared, rows, minutes)
    for domain in DOMAINS:
        events, ends = prepared.events[domain], stale.samples[f"{domain}_end"]
        for row in rows[:200]:
            user, time = prepared.samples["user_row"][row], prepared.samples["request_time"][row]
            known = events.known_at()[events.offsets[user] : events.offsets[user + 1]] <= time - minutes * MINUTE_MS
            assert ends[row] == events.offsets[user] + known.sum()
        others = np.setdiff1d(np.arange(len(ends)), rows)
        assert (ends[others] == prepared.samples[f"{domain}_end"][others]).all()
        assert (ends <= prepared.samples[f"{domain}_end"]).all()


@pytest.mark.parametrize("minutes", [0, 60, 100_000])
def test_stale_authors_are_as_a_sample_last_had_them(prepared: Prepared, minutes: int) -> None:
    samples, rows = prepared.samples, prepared.rows("test")[::11]
    stale = stale_authors(prepared, rows, minutes)
    changed = [name for name in prepared.view.columns("candidate") if name not in ("author_id", "live_id")]
    assert changed
    for row in rows[:200]:
        same = np.asarray(samples["author_id"]) == samples["author_id"][row]
        before = np.flatnonzero(same & (samples["request_time"] <= samples["request_time"][row] - minutes * MINUTE_MS))
        newest = before[samples["request_time"][before] == samples["request_time"][before].max(initial=0)]
        for name in changed:
            least = np.iinfo(samples[name].dtype).min
            expected = {least} if not len(before) else set(samples[name][newest].tolist())
            assert stale.samples[name][row] in expected
    for name in ("author_id", "live_id", "labels"):
        assert stale.samples[name] is samples[name]


def test_every_condition_can_be_scored_and_changes_only_what_it_says(prepared: Prepared) -> None:
    rows = prepared.rows("test")[:50]
    whole = gather(prepared, rows)
    found = {name: gather(data, rows) for name, data in stale_conditions(prepared, rows)}
    assert tuple(found) == NAMES
    for name, batch in found.items():
        if name == STALE_AUTHORS:
            assert (batch.users.video == whole.users.video).all()
            assert (batch.users.live == whole.users.live).all()
        else:
            assert (batch.candidates == whole.candidates).all()
        assert (batch.users.now == whole.users.now).all()
        assert (batch.labels == whole.labels).all()


def test_the_table_names_every_condition(
    prepared: Prepared, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, model = load_model(run_folder)
    found = by_condition(model, prepared, prepared.rows("test"))
    print_conditions(found, "degraded")
    text = capsys.readouterr().out
    assert all(name in text for name in (WHOLE, *NAMES))
    whole, unknown = found[WHOLE]["ctr"]["auc"], found["unknown author"]["ctr"]["auc"]
    assert f"{100 * whole:.2f}" in text
    assert f"{100 * (unknown - whole):+.2f}" in text
