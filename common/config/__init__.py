"""The live configuration: algorithms, hint policies, and the snapshot that joins them."""
