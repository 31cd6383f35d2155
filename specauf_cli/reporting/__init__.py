"""Tables as pure functions of records."""
