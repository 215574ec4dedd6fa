"""The study: a grid of variants and seeds on one PREPARED folder, compared with intervals."""

from model.study.study import run

__all__ = ["run"]
