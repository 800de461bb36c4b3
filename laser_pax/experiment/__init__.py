"""The parts of an experiment: families, slice, layout, checks, job folders, the train step."""

from laser_pax.errors import require_pax

require_pax()
