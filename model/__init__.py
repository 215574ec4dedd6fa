"""Datasets, FARM in PyTorch, training, evaluation, export.  A server runs `model.artifact` alone, without torch."""
