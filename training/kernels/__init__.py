"""The element-wise work of a mixture of experts, each piece in one pass: Triton on a GPU, PyTorch elsewhere."""
