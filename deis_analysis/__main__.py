"""``python -m deis_analysis`` is ``deis-analysis``."""

from deis_analysis.cli import main

if __name__ == "__main__":
    main()
