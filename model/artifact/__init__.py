"""The exported model on disk and at work: manifest, golden outputs, sessions, tiles, calibration, formula."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported: it would send usage data
