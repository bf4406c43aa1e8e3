"""One console: what libraries say reaches the terminal once, through the run's own logging."""

import logging
import warnings


def tidy() -> None:
    """Take away what Lightning adds when it is imported, its own handler, and a warning that is not the user's."""
    logging.getLogger("lightning").handlers.clear()
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # lightning 2.6 with torch 2.13
