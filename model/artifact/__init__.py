"""The exported model on disk and at work: manifest, golden outputs, sessions, tiles, calibration, formula."""
