"""Steps that start vLLM or talk to it: they measure an artefact as it will be served, and put it into service."""
