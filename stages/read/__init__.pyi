# Written by `graftline methods --write-stubs` from the files beside it; do not edit.

from graftline.stages.read.csv import Csv as Csv
from graftline.stages.read.json import Json as Json
from graftline.stages.read.jsonl import Jsonl as Jsonl
from graftline.stages.read.parquet import Parquet as Parquet
