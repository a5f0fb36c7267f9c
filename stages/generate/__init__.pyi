# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.generate.bm25 import Bm25 as Bm25
from graftline.stages.generate.children import Children as Children
from graftline.stages.generate.doc_qa import DocQa as DocQa
from graftline.stages.generate.drafts import Drafts as Drafts
from graftline.stages.generate.expand import Expand as Expand
from graftline.stages.generate.expansion import Expansion as Expansion
from graftline.stages.generate.questions import Questions as Questions
from graftline.stages.generate.rated_pairs import RatedPairs as RatedPairs
from graftline.stages.generate.refine import Refine as Refine
from graftline.stages.generate.self_instruct import SelfInstruct as SelfInstruct
from graftline.stages.generate.self_instruct_tasks import SelfInstructTasks as SelfInstructTasks
from graftline.stages.generate.star import Shot as Shot
from graftline.stages.generate.star import Star as Star
from graftline.stages.generate.star import star_loop as star_loop
from graftline.stages.generate.tasks import Tasks as Tasks
from graftline.stages.generate.teacher_responses import TeacherResponses as TeacherResponses
from graftline.stages.generate.translate import Translate as Translate
