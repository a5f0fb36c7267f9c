"""Running pipelines: plan, store, run, report, command line."""

if __name__ != "graftline.pipelines":
    raise ImportError("import graftline.pipelines, not pipelines; run from the repository's root, with python -m")
