"""The curriculum: turns prompts into requests, at the pace that the learner sets, and learns what became of them."""
