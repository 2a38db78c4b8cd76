"""Scores of predicted videos: per-frame metrics, best of N samples, and the published protocols that fix both."""
