"""Hypothesis profiles: ``default`` for CI, ``--hypothesis-profile=thorough`` for a long look; one torch thread."""

import hypothesis
import torch

hypothesis.settings.register_profile("default", max_examples=200, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)  # tests run side by side
