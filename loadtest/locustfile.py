"""Load as a front end makes it, by Locust; loadtest/README.md says how to run it and what its settings are."""

from __future__ import annotations

import sys

from locust import events

from loadtest.frontend.course import Course
from loadtest.frontend.settings import read_load_settings
from loadtest.frontend.shapes import shapes
from loadtest.frontend.users import ArrivalsBase, ViewerBase

try:
    settings = read_load_settings()
except ValueError as error:
    sys.exit(f"locustfile: {error}")

load = Course(settings)
load.listen(events)
globals().update(shapes(settings))

if settings.rate is None:

    class Viewer(ViewerBase):
        """Asks again when it is answered, as one person does."""

        course = load

else:

    class Arrivals(ArrivalsBase):
        """Asks when it is time."""

        course = load
