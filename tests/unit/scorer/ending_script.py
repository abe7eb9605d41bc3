"""A script that ends when it is imported, as one without a main guard does."""

import sys

sys.exit(3)
