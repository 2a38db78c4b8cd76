"""Stochastic video prediction that trains without tuning beta."""

__version__ = "0.1.0"
