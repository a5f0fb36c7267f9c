# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.score.check import Check as Check
from graftline.stages.score.choice import Choice as Choice
from graftline.stages.score.difficulty import Difficulty as Difficulty
from graftline.stages.score.embedding import Embedding as Embedding
from graftline.stages.score.json_schema import JsonSchema as JsonSchema
from graftline.stages.score.llm_judge import LlmJudge as LlmJudge
from graftline.stages.score.number import Number as Number
from graftline.stages.score.pair_judge import PairJudge as PairJudge
from graftline.stages.score.perplexity import Perplexity as Perplexity
from graftline.stages.score.pii import Pii as Pii
from graftline.stages.score.verify import Verify as Verify
