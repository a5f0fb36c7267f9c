# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train.adapter.continue_ import Continue as Continue
from graftline.stages.train.adapter.full import Full as Full
from graftline.stages.train.adapter.hft import Hft as Hft
from graftline.stages.train.adapter.lora import Lora as Lora
from graftline.stages.train.adapter.pissa import Pissa as Pissa
