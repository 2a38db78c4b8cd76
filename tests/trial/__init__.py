"""The long trial: kills, flipped bits, bad inputs and mutated files against the commands and every reader.

python -m tests.trial --help
"""
