"""`farm report`: the paper's evaluation of a study, as one self-contained HTML file."""

from model.report.write import write_report

__all__ = ["write_report"]
