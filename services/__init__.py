"""The programs around the learner: curriculum, generator, control plane, command line."""
