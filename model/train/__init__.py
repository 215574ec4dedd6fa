"""Training: the loss of Eq. 7 + 14 + 15, Adam, the epoch chosen on the validation day, checkpoints, many processes.

A run folder holds run.json (settings, view, what happened), model.pt (weights of the chosen epoch), calibration.json
(fitted on that epoch's predictions for the validation day) and checkpoint.pt (everything to go on from).
"""

from model.train.loop import train
from model.train.loss import total_loss, xtr_loss
from model.train.run import Run, RunError, load_model, refuse_other, require_view

__all__ = ["Run", "RunError", "load_model", "refuse_other", "require_view", "total_loss", "train", "xtr_loss"]
