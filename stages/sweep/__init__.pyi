# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.sweep.asha import Asha as Asha
from graftline.stages.sweep.domain import Domain as Domain
from graftline.stages.sweep.domains import choice as choice
from graftline.stages.sweep.domains import grid as grid
from graftline.stages.sweep.domains import integers as integers
from graftline.stages.sweep.domains import log_uniform as log_uniform
from graftline.stages.sweep.domains import uniform as uniform
from graftline.stages.sweep.halving import Halving as Halving
from graftline.stages.sweep.listed import Listed as Listed
from graftline.stages.sweep.outcome import Outcome as Outcome
from graftline.stages.sweep.ranged import Ranged as Ranged
from graftline.stages.sweep.scheduler import Scheduler as Scheduler
from graftline.stages.sweep.sweep import Sweep as Sweep
from graftline.stages.sweep.swept import Swept as Swept
