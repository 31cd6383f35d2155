"""The templates of the procedural corpus, grouped by family: one small function per schema."""

from specauf_cli.data.families.algebra import ALGEBRA
from specauf_cli.data.families.chat import CHAT
from specauf_cli.data.families.code import FUNCTIONS, PROGRAMS
from specauf_cli.data.families.instructions import INSTRUCTIONS
from specauf_cli.data.families.word_problems import WORD_PROBLEMS
from specauf_cli.data.families.words import Schema, Turns

__all__ = ["SCHEMAS", "Schema", "Turns"]

SCHEMAS: dict[str, tuple[Schema, ...]] = {
    "word_problems": WORD_PROBLEMS,
    "algebra": ALGEBRA,
    "functions": FUNCTIONS,
    "programs": PROGRAMS,
    "chat": CHAT,
    "instructions": INSTRUCTIONS,
}
