"""`python -m graftline.pipelines`: the command line without job submission."""

from graftline.pipelines.main import main

if __name__ == "__main__":
    main()
