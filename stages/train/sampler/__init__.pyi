# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train.sampler.loss_filter import LossFilter as LossFilter
from graftline.stages.train.sampler.shuffled import Shuffled as Shuffled
