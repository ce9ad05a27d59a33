"""What every worker would otherwise import anew: the fork server loads this once."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import coppice.api.extract  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch.export  # noqa: E402
from coppice.core.ops import lookup  # noqa: E402
from zoo.hf import transformers  # noqa: E402

torch.set_num_threads(1)
lookup(len)
transformers()
