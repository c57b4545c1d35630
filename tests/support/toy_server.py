"""Imported once by the server that the training tests fork their processes from.

A trainer imports most of this when it needs it; without this module every process would do so.
"""

import accelerate.tracking  # noqa: F401
import torch.distributed
import torch.nn.parallel
import torch.utils.tensorboard  # noqa: F401

import imageprompt.checkpoint.write  # noqa: F401
import toy_training

toy_training.new_adapter(toy_training.denoiser())
