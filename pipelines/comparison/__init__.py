"""`vlmops compare`: one fine-tuned model in several schemes, each served and measured in the same way."""
