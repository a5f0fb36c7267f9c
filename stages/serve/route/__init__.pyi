# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.serve.route.linear_router import LinearRouter as LinearRouter
from graftline.stages.serve.route.nearest_neighbours import NearestNeighbours as NearestNeighbours
from graftline.stages.serve.route.price import Price as Price
from graftline.stages.serve.route.route import Route as Route
from graftline.stages.serve.route.tried import Tried as Tried
