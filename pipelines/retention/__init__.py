"""What is kept and for how long, copies of what cannot be made again, and the way back from them."""
