"""What every worker would otherwise import anew: the fork server loads this once."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch._dynamo
import torch.export

from coppice.core.ops import lookup
from zoo.hf import transformers

torch.set_num_threads(1)
lookup(len)
transformers()
