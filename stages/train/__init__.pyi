# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.train import adapter as adapter
from graftline.stages.train import base as base
from graftline.stages.train import objective as objective
from graftline.stages.train import optimizer as optimizer
from graftline.stages.train import sampler as sampler
from graftline.stages.train.adapter.continue_ import Continue as Continue
from graftline.stages.train.adapter.full import Full as Full
from graftline.stages.train.adapter.hft import Hft as Hft
from graftline.stages.train.adapter.lora import Lora as Lora
from graftline.stages.train.adapter.pissa import Pissa as Pissa
from graftline.stages.train.base.float import Float as Float
from graftline.stages.train.base.nf4 import Nf4 as Nf4
from graftline.stages.train.objective.dpo import Dpo as Dpo
from graftline.stages.train.objective.sft import Sft as Sft
from graftline.stages.train.optimizer.adamw import AdamW as AdamW
from graftline.stages.train.optimizer.adamw8bit import AdamW8bit as AdamW8bit
from graftline.stages.train.optimizer.loraplus import LoraPlus as LoraPlus
from graftline.stages.train.prefix_states import PrefixStates as PrefixStates
from graftline.stages.train.reference_logprobs import ReferenceLogprobs as ReferenceLogprobs
from graftline.stages.train.sampler.loss_filter import LossFilter as LossFilter
from graftline.stages.train.sampler.shuffled import Shuffled as Shuffled
from graftline.stages.train.tokenised import Tokenised as Tokenised
from graftline.stages.train.tokenised_pairs import TokenisedPairs as TokenisedPairs
from graftline.stages.train.train import Train as Train
