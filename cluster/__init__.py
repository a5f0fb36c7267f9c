"""Where pipelines run: the top floor, which holds the command line's entry."""

if __name__ != "graftline.cluster":
    raise ImportError("import graftline.cluster, not cluster; run from the repository's root, with python -m")
