"""Where pipelines run: the command line's top floor, job submission, cluster manifests."""

if __name__ != "graftline.cluster":
    raise ImportError("import graftline.cluster, not cluster; run from the repository's root, with python -m")
