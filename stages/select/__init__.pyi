# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.select.concat import Concat as Concat
from graftline.stages.select.grape import Grape as Grape
from graftline.stages.select.kmeans_quality import KmeansQuality as KmeansQuality
from graftline.stages.select.near_duplicates import NearDuplicates as NearDuplicates
from graftline.stages.select.split import Split as Split
from graftline.stages.select.token_budget import TokenBudget as TokenBudget
from graftline.stages.select.top_k import TopK as TopK
from graftline.stages.select.where import Where as Where
