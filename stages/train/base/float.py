"""The base as it is: full precision."""

from __future__ import annotations

from graftline.stages.train.plugs import Base


class Float(Base):
    """The base's weights as they were loaded, in the number format `Train.dtype` says; nothing is quantised.

    Property tested: holding changes no weight and no layer.
    """

    method = "base.float"
    origin = "the pristine weights"
