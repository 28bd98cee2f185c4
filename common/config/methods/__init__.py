"""What may be asked of each method, by family: published defaults, and the material each needs."""
