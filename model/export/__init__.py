"""Export: a trained run to the artifact that serving loads (two ONNX graphs over one set of embedding tables)."""

from model.export.artifact import GOLDEN_TOLERANCE, ExportError, export_model, export_run

__all__ = ["GOLDEN_TOLERANCE", "ExportError", "export_model", "export_run"]
