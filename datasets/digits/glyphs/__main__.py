"""`python -m datasets.digits.glyphs ROOT`, in a file that `datasets` does not import, or it would be loaded twice."""

import sys

from datasets.digits.glyphs import main

main(sys.argv[1:])
