"""Where published base models come from: each place lists its files with their hashes, one transfer fetches them."""
