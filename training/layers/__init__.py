"""What a frozen model with LoRA is made of, with fewer passes over memory than the stock layers."""
