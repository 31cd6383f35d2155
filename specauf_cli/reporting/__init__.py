"""Tables, figures, claims and reports as pure functions of records."""
