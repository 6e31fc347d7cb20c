"""Records of methods that fedpeft leaves out, each with a warning."""

from dataclasses import replace

from pydantic import BaseModel

from fedpeft.catalogue.lora import Lora
from fedpeft.catalogue.method_section import MethodSection
from fedpeft_lab.gains import METHOD


class Needy(MethodSection):
    """A setting without a default: nobody could write ``needy = {}``."""

    rank: int


NEEDY = replace(METHOD, section=Needy)
SHADOW = replace(METHOD, section=Lora)
"""By its class a section is known to be LoRA's."""
TWIN = replace(METHOD)
"""Gains has this section already."""
BARE = replace(METHOD, section=BaseModel)
