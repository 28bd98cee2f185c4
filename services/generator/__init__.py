"""The generator: carries out requests with the policy's current weights and answers each with one graded group."""
