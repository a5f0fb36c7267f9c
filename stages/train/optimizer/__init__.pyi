# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train.optimizer.adamw import AdamW as AdamW
from graftline.stages.train.optimizer.adamw8bit import AdamW8bit as AdamW8bit
from graftline.stages.train.optimizer.loraplus import LoraPlus as LoraPlus
