"""Recipes as a user composes them, built without memory."""

from functools import cache

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ivt2.cli.door import CONF


@cache
def config(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[f"experiment={name}"])


@cache
def module(name):
    with torch.device("meta"):
        return instantiate(config(name).module, _convert_="all")
