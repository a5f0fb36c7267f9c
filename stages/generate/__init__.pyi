# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.generate.drafts import Drafts as Drafts
from graftline.stages.generate.self_instruct import SelfInstruct as SelfInstruct
