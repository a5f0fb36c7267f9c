# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train.objective.dpo import Dpo as Dpo
from graftline.stages.train.objective.sft import Sft as Sft
