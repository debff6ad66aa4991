"""How an answer is scored: a module for each scorer, pure functions of the answer and what was expected."""
