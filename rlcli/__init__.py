"""rlcli: one command that post-trains a language model with reinforcement learning."""

import logging

__version__ = "0.1.0"

# transformers imports DeepSpeed where that is installed, which then says that there is no GPU
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
