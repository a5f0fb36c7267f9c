# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.select.concat import Concat as Concat
from graftline.stages.select.split import Split as Split
from graftline.stages.select.top_k import TopK as TopK
