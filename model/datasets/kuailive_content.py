"""Room embeddings of KuaiLive-M3 as categories: product quantisation, so that a model of integer fields can read them.

Letters: N vectors, E numbers of a vector, M parts of it, K centres of a part.
Source: Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from model.datasets.kuailive_tables import Reader
from model.datasets.kuailive_view import CODE_VALUES, CODES
from model.datasets.source import ID_LIMITS, Check, SourceError

EMBEDDING_FILE = "live_emb_64.parquet"
WIDTH = 64  # E
FIT_ROOMS = 20_000
FIT_ROUNDS = 10
_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Codebook:
    """The centres that stand for each part of a vector."""

    centres: np.ndarray  # [M, K, E / M] float32

    @classmethod
    def fit(cls, vectors: np.ndarray, parts: int, values: int, rounds: int, seed: int) -> Codebook:
        """Lloyd's k-means of each part of `vectors` [N, E], from `values` of the distinct ones, or all if fewer."""
        rng = np.random.default_rng(seed)
        pieces = np.split(vectors.astype(np.float32), parts, axis=1)  # M of [N, E / M]
        fitted = [_lloyd(piece, values, rounds, rng) for piece in pieces]
        most = max(len(centres) for centres in fitted)
        # Fewer than K centres are filled up with copies of the first, which are never the nearest before it.
        return cls(np.stack([np.concatenate([c, np.repeat(c[:1], most - len(c), axis=0)]) for c in fitted]))

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """The nearest centre of each part of `vectors` [N, E].  [N, M] int16"""
        pieces = np.split(vectors.astype(np.float32), len(self.centres), axis=1)
        nearest = [_nearest(piece, centres) for piece, centres in zip(pieces, self.centres, strict=True)]
        return np.stack(nearest, axis=1).astype(np.int16)


def _lloyd(points: np.ndarray, values: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """[N, E / M] -> [K, E / M]; a centre that no point is nearest to stays where it is."""
    distinct = np.unique(points, axis=0)
    centres: np.ndarray = distinct[rng.permutation(len(distinct))[:values]]
    for _ in range(rounds):
        nearest = _nearest(points, centres)  # [N]
        sizes = np.bincount(nearest, minlength=len(centres))  # [K]
        sums = [np.bincount(nearest, weights=column, minlength=len(centres)) for column in points.T]
        means = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
        centres = np.where(sizes[:, None] > 0, means, centres).astype(np.float32)
    return centres


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[N, E / M], [K, E / M] -> [N] int64"""
    distances = (centres**2).sum(axis=1) - 2 * points @ centres.T  # [N, K], less what is the same for every centre
    nearest: np.ndarray = distances.argmin(axis=1)
    return nearest


def room_codes(reader: Reader, rooms: pl.DataFrame, before_ms: int, seed: int) -> tuple[pl.DataFrame, Codebook]:
    """The codes of every room that has an embedding, and the codebook.

    rooms: `live_id` and `start`; the codebook is fitted on those that started before `before_ms`.
    -> `live_id`, `emb_0` ... `emb_7`, a room once.  SourceError names a corrupt row, and says when no room can be
    fitted on.
    """
    embeddings = reader.read(EMBEDDING_FILE, {"live_id": ID_LIMITS}, others=["embedding"], checks=_checks())
    embeddings = embeddings.filter(pl.col("embedding").is_not_null())
    codebook = _fit(embeddings, rooms.filter(pl.col("start") < before_ms)["live_id"], seed)
    names = [f"emb_{i}" for i in range(CODES)]
    coded = [
        pl.DataFrame({"live_id": chunk["live_id"]}).hstack(pl.DataFrame(codebook.codes(_vectors(chunk)), schema=names))
        for chunk in _chunks(embeddings)
    ]
    return pl.concat(coded).unique("live_id", keep="last", maintain_order=True), codebook


def _checks() -> list[Check]:
    numbers = pl.col("embedding").cast(pl.List(pl.Float32))
    length = numbers.list.len().fill_null(WIDTH)  # none is an embedding that is not known
    sound = numbers.list.eval(pl.element().is_finite().fill_null(False)).list.all().fill_null(True)
    return [
        Check(length != WIDTH, pl.format(f"embedding has {{}} numbers, not {WIDTH}", length)),
        Check(~sound, pl.lit("embedding holds a value that is no number")),
    ]


def _fit(embeddings: pl.LazyFrame, live_ids: pl.Series, seed: int) -> Codebook:
    known = embeddings.select("live_id").collect(engine="streaming")["live_id"]
    ids = known.filter(known.is_in(live_ids.implode())).unique().sort().to_numpy()
    if not len(ids):
        raise SourceError(f"{EMBEDDING_FILE}: no room that started before the first test day has an embedding")
    chosen = pl.DataFrame({"live_id": np.random.default_rng(seed).permutation(ids)[:FIT_ROOMS]})
    rows = embeddings.join(chosen.lazy(), on="live_id", how="semi").collect(engine="streaming")
    rows = rows.unique("live_id", keep="any").sort("live_id")
    return Codebook.fit(_vectors(rows), CODES, CODE_VALUES, FIT_ROUNDS, seed)


def _chunks(embeddings: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    return embeddings.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True, engine="streaming")


def _vectors(rows: pl.DataFrame) -> np.ndarray:
    """[N, E] float32"""
    flat = rows["embedding"].cast(pl.List(pl.Float32)).explode()
    return flat.to_numpy().reshape(-1, WIDTH)
