"""Pairs whose better response people have named: files to rows, rows to pairs, pairs to a set."""

from rlaif.gold.layouts import Ceiling
from rlaif.gold.sets import GoldPair, GoldSet, Part, load_gold, part_of
from rlaif.gold.sources import check_there

__all__ = ["Ceiling", "GoldPair", "GoldSet", "Part", "check_there", "load_gold", "part_of"]
