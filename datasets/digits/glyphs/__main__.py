"""`python -m datasets.digits.glyphs ROOT`: apart, so that the module is not loaded twice."""

import sys

from datasets.digits.glyphs import main

main(sys.argv[1:])
