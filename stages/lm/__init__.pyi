# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.lm.embedder import Embedder as Embedder
from graftline.stages.lm.endpoint import Endpoint as Endpoint
from graftline.stages.lm.endpoint_engine import EndpointEngine as EndpointEngine
from graftline.stages.lm.engine import Engine as Engine
from graftline.stages.lm.llm import Llm as Llm
from graftline.stages.lm.pressure import Pressure as Pressure
from graftline.stages.lm.reader import Reader as Reader
