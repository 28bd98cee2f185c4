"""What every process speaks: nouns, wire, streams, live configuration, weights manifest, metrics."""
