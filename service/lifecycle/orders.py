"""What shall serve, as settings or a pointer say it."""

from __future__ import annotations

from model.artifact.formula import Formula
from service.settings import Settings
from service.tasks import LocalModel, Order


def static_order(settings: Settings) -> Order:
    """What settings name, for ever.  Its version is whatever the artifact has."""
    if settings.artifact is None:
        raise ValueError("give --artifact or --models: nothing says which model shall serve")
    formula = Formula() if settings.formula is None else Formula.load(settings.formula)
    return Order(LocalModel("", settings.artifact), formula=formula)
