"""Initial weights that know the schema: attention looks for equals, filters let through what tells events apart.

The candidate, a live event and a video event name authors, tags and pages from shared embedding tables.  From the usual
initial weights the logit of two equal rows is as random as that of any two, and an attention finds out only slowly that
equality matters.  Here the query and key projections of a shared table start as the same map, so that an equal
row begins with a known logit and any other with one near zero; training may change all of it.

Likewise the filters start near a high pass, values start with what happened, the preferences of both domains start as
one map, and the buckets of a number start in their order.

Letters: H heads, d width of a head, w width of a field, D width of a query's or key's part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from feature_store.view import ModelView, Part
from model.align import Preference
from model.attention import KeysValues
from model.embedding import table_key
from model.frequency import FrequencyModule, Gate

Columns = slice

# What tells events of a history apart is in the high frequencies: were it halved, so would be the logits of equals, and
# the sink would outweigh any match.
LOW_START, HIGH_START = 0.1, 0.9


def field_columns(view: ModelView, part: Part) -> dict[str, Columns]:
    """Where the embedding of each table lies in a part's concatenation; the first field of a table counts."""
    columns: dict[str, Columns] = {}
    start = 0
    for field in view.fields(part):
        columns.setdefault(view.table_name(part, field), slice(start, start + field.width))
        start += field.width
    return columns


def shared_columns(view: ModelView, query: Part, key: Part) -> Iterator[tuple[Columns, Columns]]:
    """Columns of every table that both parts read."""
    keys = field_columns(view, key)
    for table, columns in field_columns(view, query).items():
        if table in keys:
            yield columns, keys[table]


@torch.no_grad()
def look_for_equals(
    query: Tensor,
    bias: Tensor | None,
    events: KeysValues,
    shared: Iterable[tuple[Columns, Columns]],
    logit: float,
    table_std: float,
) -> None:
    """Make the projections of shared tables start alike, in place: a head to a table, in turn.

    Values start with what happened, at the scale of 1: the tables that are not shared; the rest is what was looked for.
    So does the bias that tells how much of an attention is not the sink's.
    query [H d, Dq], bias [H d]: of the query's projection.  logit: of a row of N(0, table_std) with itself, and of any
    query with the sink.
    """
    shared = list(shared)
    heads, key, value = events.heads, events.key.weight, events.value.weight
    known = sum(columns.stop - columns.start for _, columns in shared)
    nn.init.normal_(value, std=1 / (table_std * math.sqrt(max(1, value.shape[1] - known))))
    for _, columns in shared:
        value[:, columns] = 0.0
    head_width = len(key) // heads
    for number, (query_columns, key_columns) in enumerate(shared):
        head = number % heads
        rows = slice(head * head_width, (head + 1) * head_width)
        width = key_columns.stop - key_columns.start
        gain = math.sqrt(logit * math.sqrt(head_width) / (min(width, head_width - 1) * table_std**2))
        start = torch.empty(head_width, width)
        nn.init.orthogonal_(start[:-1], gain)
        start[-1] = 0
        query[rows, query_columns] = start
        key[rows, key_columns] = start
    if events.sink_key is not None and bias is not None:
        # The last number of a head's query starts as 1, so that the sink has a logit of its own.
        last = torch.arange(1, heads + 1) * head_width - 1
        query[last], bias[last] = 0.0, 1.0
        key[last] = 0.0
        events.sink_key[:, -1] = logit
        nn.init.normal_(events.value.bias)


@torch.no_grad()
def start_alike(
    video: Preference, live: Preference, shared: Iterable[tuple[Columns, Columns]], table_std: float
) -> None:
    """Make the preferences of both domains (Eq. 13) start as one map of the tables they share, in place.

    A user's histories that name the same rows then have like preferences before anything is learnt, and the contrastive
    loss has what is alike to begin with.  table_std: of the shared tables; a mean of events is several times smaller.
    """
    layers = [[layer for layer in side.mlp if isinstance(layer, nn.Linear)] for side in (video, live)]
    for layer in (*layers[0], *layers[1]):
        nn.init.zeros_(layer.bias)
    (of_video, last), (of_live, other) = layers
    for video_columns, live_columns in shared:
        start = torch.randn(len(of_video.weight), video_columns.stop - video_columns.start) / table_std
        of_video.weight[:, video_columns] = start
        of_live.weight[:, live_columns] = start
    other.weight.copy_(last.weight)


@torch.no_grad()
def start_as_high_pass(filters: FrequencyModule) -> None:
    """Make the gates of Eq. 10 start at LOW_START and HIGH_START, about, in place."""
    for gate, start in ((filters.low_gate, LOW_START), (filters.high_gate, HIGH_START)):
        _start_gate(gate, start)


def _start_gate(gate: Gate, start: float) -> None:
    last = gate.mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, math.log(start / (1 - start)))


@torch.no_grad()
def start_in_order(tables: nn.ModuleDict, view: ModelView, table_std: float) -> None:
    """Make the rows of buckets start along a line, in place: more in a bucket's place is more along the line.

    A mean of events then tells how much there was, which rows at random tell only after training.
    """
    for part, field in view.all_fields():
        if field.kind in ("number", "time"):
            rows = tables[table_key(view.table_name(part, field))].weight
            assert isinstance(rows, Tensor)
            if not len(rows):  # of a model that is there to be counted
                continue
            place = torch.linspace(-(3**0.5), 3**0.5, len(rows) - 1)[:, None]  # of variance 1
            sign = torch.randint(0, 2, (rows.shape[1],)) * 2 - 1
            rows[1:] = table_std * place * sign + rows[1:] / 10
