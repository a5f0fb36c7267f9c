# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train.base.float import Float as Float
