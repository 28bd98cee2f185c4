"""New weight versions: copied at a step boundary, written, proved, announced, and removed when nobody needs them."""
