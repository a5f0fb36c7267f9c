# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.merge.concat import Concat as Concat
from graftline.stages.merge.into_base import IntoBase as IntoBase
