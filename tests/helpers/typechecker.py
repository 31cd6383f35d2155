"""What jaxtyping's import hook checks arguments and results with."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An ``int`` is a ``float``, as for mypy (PEP 484)."""
