"""From groups to micro-batches: denominators, cut, rows, and the way to the device."""
