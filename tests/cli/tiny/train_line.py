"""train.py with the package of fakes allowed."""

import sys
from pathlib import Path

from ivt2.cli.targets import ALLOWED

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    ALLOWED["fakes."] = "fakes"
    import train

    train.main()
