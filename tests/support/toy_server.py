"""Imported once by the server that the training tests fork their processes from.

A trainer imports these modules when it needs them; without this every process would do so.
"""

import accelerate.tracking  # noqa: F401
import torch.distributed
import torch.nn.parallel
import torch.utils.tensorboard  # noqa: F401

import toy_training

toy_training.denoiser()
toy_training.vision()
