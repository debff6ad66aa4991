"""The embedded default: tiny base models and a real data set, made on the spot, nothing downloaded."""
