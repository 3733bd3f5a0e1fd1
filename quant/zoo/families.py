"""All families of the zoo: small builders, one per architecture, with fresh weights."""

from __future__ import annotations

from isobit.quant.zoo.family import Family
from isobit.quant.zoo.image_families import IMAGE_FAMILIES
from isobit.quant.zoo.sequence_families import SEQUENCE_FAMILIES

FAMILIES: dict[str, Family] = {**SEQUENCE_FAMILIES, **IMAGE_FAMILIES}
