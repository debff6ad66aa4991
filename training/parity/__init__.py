"""Logits parity: what is exported predicts what was trained, shown on prompts with images."""
