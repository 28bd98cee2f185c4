"""What operators look into: dry runs of other configurations, and groups of a step as the learner saw them."""
