# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.evaluate.answer_accuracy import AnswerAccuracy as AnswerAccuracy
from graftline.stages.evaluate.answer_length import AnswerLength as AnswerLength
from graftline.stages.evaluate.choice import Choice as Choice
from graftline.stages.evaluate.compare import Compare as Compare
from graftline.stages.evaluate.diversity import Diversity as Diversity
from graftline.stages.evaluate.exact_match import ExactMatch as ExactMatch
from graftline.stages.evaluate.figure import Figure as Figure
from graftline.stages.evaluate.labelled import Labelled as Labelled
from graftline.stages.evaluate.loss import Loss as Loss
from graftline.stages.evaluate.metric import Metric as Metric
from graftline.stages.evaluate.requirement import Requirement as Requirement
