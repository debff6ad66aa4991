"""Chat rows with images: read, checked, split and turned into tensors."""
