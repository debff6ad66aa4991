"""An engine under load, by vLLM's own client `vllm bench serve`."""
