# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.score.embedding import Embedding as Embedding
