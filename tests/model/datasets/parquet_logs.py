"""Small logs in the project's format, made by hand: one frame per table, each changed at will and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from feature_store.schema import default_schema

ACTS = default_schema().behaviours
DAY_MS = 86_400_000
START_MS = int(datetime(2025, 3, 1, tzinfo=UTC).timestamp()) * 1000  # three days from here on, in UTC
STEP_MS = 300_000


def views(count: int, rng: np.random.Generator, live: bool, first_view: int = 1, users: int = 6) -> pl.DataFrame:
    """`count` views of three days; times are coarse and play times often 0, so ties and slate-mates are common."""
    columns = {
        "user_id": rng.integers(1, users + 1, count),
        "author_id": rng.integers(-5, 5, count),
        "view_id": first_view + rng.permutation(count),
        "event_time": START_MS + rng.integers(0, 3 * DAY_MS // STEP_MS, count) * STEP_MS,
        "play_time": rng.integers(0, 4, count) * STEP_MS,
        "page": rng.integers(0, 4, count),
        "tag": rng.integers(0, 32, count),
        **{act: rng.integers(0, 2, count) for act in ACTS},
    }
    if live:
        columns |= {"live_id": rng.integers(1, 50, count), "cluster": rng.integers(0, 20, count)}
    return pl.DataFrame(columns)


@dataclass
class Logs:
    """The frames of one folder, by table."""

    frames: dict[str, pl.DataFrame] = field(default_factory=dict)

    @classmethod
    def random(cls, seed: int, video: int = 400, live: int = 60) -> Logs:
        rng = np.random.default_rng(seed)
        users = pl.DataFrame({"user_id": np.arange(1, 6), "activity_group": rng.integers(0, 4, 5)})
        authors = pl.DataFrame({name: np.arange(1, 6) for name in ("author_id", "live_id", "tag", "cluster")})
        frames = {"video_events": views(video, rng, live=False), "live_events": views(live, rng, live=True)}
        return cls(frames | {"users": users, "authors": authors})

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in self.frames.items():
            frame.write_parquet(folder / f"{name}.parquet")
        return folder

    def write_csv(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in self.frames.items():
            frame.write_csv(folder / f"{name}.csv")
        return folder

    def write_parts(self, folder: Path, parts: int) -> Path:
        """Each table as a folder of Parquet files, the rows in the same order."""
        for name, frame in self.frames.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for part, start in enumerate(range(0, len(frame), -(-len(frame) // parts))):
                rows = frame[start : start + -(-len(frame) // parts)]
                rows.write_parquet(folder / name / f"part-{part}.parquet")
        return folder

    def shuffled(self, seed: int) -> Logs:
        return Logs({name: frame.sample(fraction=1, shuffle=True, seed=seed) for name, frame in self.frames.items()})

    def with_text_ids(self, *columns: str) -> Logs:
        """The same logs with some id columns as text: 7 becomes u7."""
        texts = [pl.format("u{}", pl.col(name)).alias(name) for name in columns]
        return Logs(
            {
                name: frame.with_columns(text for text in texts if text.meta.output_name() in frame.columns)
                for name, frame in self.frames.items()
            }
        )

    def set(self, file: str, row: int, **values: int | None) -> Logs:
        """The same logs with some values of one row changed."""
        frame = self.frames[file].with_row_index("_i")
        changed = [
            pl.when(pl.col("_i") == row).then(pl.lit(value, pl.Int64)).otherwise(pl.col(name)).alias(name)
            for name, value in values.items()
        ]
        return Logs(self.frames | {file: frame.with_columns(changed).drop("_i")})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
