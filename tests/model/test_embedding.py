"""Raw int64 values to rows of tables: against plain Python, at the edges of 64 bits, and how ids spread."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from conftest import MakeModel
from hypothesis import given
from hypothesis import strategies as st

from feature_store.schema import MISSING
from feature_store.view import ModelView, ViewField
from model.datasets.logs import default_view
from model.embedding import BitSum, FieldRows, PartEmbedding, event_mask, make_tables, masked_mean, mix, quantise

INT64 = st.integers(-(2**63), 2**63 - 1)
REAL = INT64.filter(lambda value: value != MISSING)
TIMES = (0, 1_651_680_000_123, 1_763_000_000_000, 2_053_000_000_456)  # 1970, 2022, 2025, 2035
VIEW = default_view(utc_offset_s=5 * 3600 + 1800)
ID = ViewField(name="author_id", kind="id", width=1, rows=1000)
CATEGORY = ViewField(name="tag", kind="category", width=1, rows=32)
NUMBER = ViewField(name="play_time", kind="number", width=1, boundaries=(-5, 0, 7, 2**40))
LAG = ViewField(name="lag", kind="time", width=1, boundaries=(1, 60_000, 3_600_000, 2**41))
HOUR = ViewField(name="hour", kind="hour", width=1)
BITS = ViewField(name="behaviours", kind="behaviours", width=3, rows=31)


def rows_of(field: ViewField, values: list[int], now: int = 0, view: ModelView = VIEW) -> list[int]:
    rows = FieldRows(field, view)(torch.tensor(values), quantise(torch.tensor(now), view.lag_quantum_s))
    assert rows.dtype == torch.int64
    return rows.tolist()


@given(values=st.lists(INT64, min_size=1, max_size=20), now=st.sampled_from(TIMES))
def test_rows_agree_with_plain_python(values: list[int], now: int) -> None:
    for field in (ID, CATEGORY, NUMBER):
        assert rows_of(field, values, now) == [reference.rows_of(field, VIEW, v, now)[0] for v in values]


@given(lag=st.integers(-(2**42), 2**42), now=st.integers(0, 2**42))
def test_lags_agree_with_plain_python(lag: int, now: int) -> None:
    assert rows_of(LAG, [now - lag, MISSING], now) == [*reference.rows_of(LAG, VIEW, now - lag, now), 0]


@given(now=st.integers(0, 2**42))
@pytest.mark.parametrize("offset_h", [-11, -3.5, 0, 5.75, 14])
def test_hours_agree_with_plain_python(now: int, offset_h: float) -> None:
    view = default_view(utc_offset_s=int(offset_h * 3600))
    rows = FieldRows(HOUR, view)(quantise(torch.tensor([now]), 60), torch.tensor(0)).tolist()
    assert rows == reference.rows_of(HOUR, view, 0, now)
    assert 1 <= rows[0] <= 24


@given(values=st.lists(INT64, min_size=1, max_size=8))
def test_behaviours_are_sums_of_rows(values: list[int]) -> None:
    table = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = BitSum(BITS)(torch.tensor(values), table)
    for value, found in zip(values, sums, strict=True):
        expected = table[reference.rows_of(BITS, VIEW, value, 0)].sum(0)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("field", [ID, CATEGORY])
@pytest.mark.parametrize("rows", [2, 3, 128, 16_384, 2**31])
@given(value=REAL)
def test_only_missing_goes_to_row_0(field: ViewField, rows: int, value: int) -> None:
    field = field.model_copy(update={"rows": rows})
    found = rows_of(field, [MISSING, value, 0, -1, 1, 2**53 + 1, 2**63 - 1, MISSING + 1])
    assert found[0] == 0
    assert all(1 <= row <= rows - 1 for row in found[1:])


@pytest.mark.parametrize("field", [NUMBER, LAG])
def test_numbers_and_lags_miss_only_when_missing(field: ViewField) -> None:
    values = [0, -1, 2**31, 2**40, -(2**31)]
    assert 0 not in rows_of(field, values, TIMES[2])
    assert rows_of(field, [MISSING], TIMES[2]) == [0]
    assert rows_of(NUMBER, [MISSING + 1, 2**63 - 1]) == [1, 5]


def test_categories_below_their_rows_have_a_row_each() -> None:
    assert rows_of(CATEGORY, list(range(31))) == list(range(1, 32))


# Ids


def assert_spread(ids: np.ndarray, buckets: int) -> None:
    """As many buckets are hit as random rows would hit, less four standard deviations."""
    hit = len(np.unique((mix(torch.from_numpy(ids)) % buckets).numpy()))
    free = (1 - 1 / buckets) ** len(ids)  # chance that a bucket stays empty
    deviation = np.sqrt(buckets * (free - free**2 * (1 + len(ids) / buckets)))
    assert hit > buckets * (1 - free) - 4 * deviation


@pytest.mark.parametrize("buckets", [127, 1024, 16_383, 32_767])
@pytest.mark.parametrize("start", [0, -8000, 10**12, 2**53, 2**62])
def test_consecutive_ids_spread_like_random_ones(buckets: int, start: int) -> None:
    assert_spread(np.arange(start, start + buckets, dtype=np.int64), buckets)


@pytest.mark.parametrize("buckets", [127, 1024, 16_383, 32_767])
@pytest.mark.parametrize("power", [1, 4, 8, 12, 16, 20, 24])
def test_multiples_of_powers_of_two_spread_like_random_ones(buckets: int, power: int) -> None:
    assert_spread(np.arange(buckets, dtype=np.int64) << power, buckets)


@pytest.mark.parametrize("step", [1000, 2**31 - 1, 16_383, 10**9])
def test_multiples_of_round_numbers_and_of_the_primes_spread(step: int) -> None:
    assert_spread(np.arange(16_383, dtype=np.int64) * step, 16_383)


def test_ids_of_a_time_and_a_machine_spread() -> None:
    """Snowflake ids: ms << 22 | machine << 12 | number, the number mostly 0."""
    rng = np.random.default_rng(0)
    ids = (rng.integers(1_500_000_000_000, 1_700_000_000_000, 16_383) << 22) | (rng.integers(0, 32, 16_383) << 12)
    assert_spread(ids, 16_383)


def test_mix_is_of_all_64_bits() -> None:
    """Flipping any one bit changes the row of most ids."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 500))
    for bit in range(64):
        flipped = ids ^ (MISSING if bit == 63 else 1 << bit)
        assert (mix(ids) != mix(flipped)).float().mean() > 0.99
    assert mix(ids).min() >= 0
    assert mix(ids).max() < 2**31 - 1


# Time


@given(now=st.integers(-(10**6), 2**42), quantum=st.integers(1, 7200))
def test_now_is_floored_to_the_quantum(now: int, quantum: int) -> None:
    assert quantise(torch.tensor(now), quantum).item() == now // (quantum * 1000) * (quantum * 1000)


@pytest.mark.parametrize("now", TIMES[1:])
def test_results_are_the_same_within_the_quantum_and_not_beyond(make_model: MakeModel, now: int) -> None:
    model = make_model()
    start = now // 60_000 * 60_000
    video = torch.full((1, 50, len(model.view.columns("video"))), MISSING)
    video[..., model.view.columns("video").index("event_time")] = start - 60_000  # the first boundary of a lag is 1 min

    def embedded(moment: int) -> torch.Tensor:
        length, moments = torch.tensor([50]), torch.tensor([moment])
        live = torch.full((1, 50, len(model.view.columns("live"))), MISSING)
        return model.inputs.histories(video, length, live, length, moments).video

    assert torch.equal(embedded(start), embedded(start + 59_999))
    assert torch.equal(embedded(start), embedded(start + 1))
    assert not torch.equal(embedded(start), embedded(start - 1))


@pytest.mark.parametrize("now", TIMES[1:])
def test_an_event_after_the_quantised_now_has_lag_zero(now: int) -> None:
    quantised = now // 60_000 * 60_000
    later = [quantised + ahead for ahead in (0, 1, 59_999, 86_400_000, 2**40, 2**61)]
    assert rows_of(LAG, later, now) == [1] * len(later)
    assert rows_of(LAG, [quantised - 1], now) == [2]


def test_boundaries_of_a_lag_begin_at_one_millisecond() -> None:
    """What makes an explicit clamp to zero needless; ONNX Runtime's would cut at 32 bits."""
    for bad in (0, -1):
        with pytest.raises(ValueError, match="1 ms"):
            ViewField(name="lag", kind="time", width=1, boundaries=(bad, 10))


# Parts


def test_fields_of_one_table_share_it_and_a_column_may_be_read_twice() -> None:
    twice = ViewField(name="tag_again", kind="category", width=4, rows=32, column="tag", table="video.tag")
    tag = ViewField(name="tag", kind="category", width=4, rows=32)
    view = VIEW.model_copy(update={"video": (tag, twice)})
    tables = make_tables(view, std=1.0)
    part = PartEmbedding(view, "video", tables, {"other": 0.0})
    out = part(torch.tensor([[5], [MISSING]]), torch.zeros(2).long())
    assert torch.equal(out[:, :4], out[:, 4:])
    assert torch.equal(out[0, :4], tables["video_tag"].weight[6])  # type: ignore[index]
    assert torch.equal(out[1, :4], tables["video_tag"].weight[0])  # type: ignore[index]


def test_fields_are_dropped_in_training_only() -> None:
    tables = make_tables(VIEW, std=1.0)
    part = PartEmbedding(VIEW, "user", tables, {"id": 0.5, "other": 0.0})
    users = torch.stack([torch.arange(1000), torch.ones(1000).long()], dim=1)
    now = torch.zeros(1000).long()
    missing = tables["user_user_id"].weight[0]  # type: ignore[index]
    width = VIEW.user[0].width
    torch.manual_seed(0)
    dropped = (part.train()(users, now)[:, :width] == missing).all(1)
    assert 400 < int(dropped.sum()) < 600
    assert (part(users, now)[:, width:] == tables["user_activity_group"].weight[2]).all()  # type: ignore[index]
    assert not (part.eval()(users, now)[:, :width] == missing).all(1).any()


def test_masked_mean_and_event_mask() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    valid = event_mask(torch.tensor([2, 0]), 3)
    assert valid.tolist() == [[True, True, False], [False] * 3]
    assert masked_mean(x, valid).tolist() == [[1.0, 2.0], [0.0, 0.0]]
