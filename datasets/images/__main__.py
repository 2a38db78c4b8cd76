"""`python -m datasets.images ROOT`, in a file that `datasets` does not import, or it would be loaded twice."""

import sys

from datasets.images import main

main(sys.argv[1:])
