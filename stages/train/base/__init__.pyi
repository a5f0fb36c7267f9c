# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train.base.float import Float as Float
from graftline.stages.train.base.nf4 import Nf4 as Nf4
