"""The scorer: an expert model, served by the same engine as the policy, that scores demonstrations."""
