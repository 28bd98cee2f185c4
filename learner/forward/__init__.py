"""The forward: the model as it is loaded and placed, its layers and attention, and what it says of response tokens."""
