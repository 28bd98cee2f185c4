"""The learner: turns groups into optimiser steps and weight versions. The only home of torch."""
