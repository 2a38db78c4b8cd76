"""What several test modules share: tiny runs and their flags, clips, comparisons and waiting for processes."""
