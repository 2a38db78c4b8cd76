"""Evaluations as tables, plots and pages. Reads what evaluation has measured, and measures nothing."""
