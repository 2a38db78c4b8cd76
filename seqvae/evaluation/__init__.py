"""What evaluate.py measures, draws and prints: futures of videos, bounds and latents, single images."""
