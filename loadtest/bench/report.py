"""The JSON of a bench: model.figures, by its name here."""

from model.figures import claim, environment, report

__all__ = ["claim", "environment", "report"]
