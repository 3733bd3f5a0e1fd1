"""How exported operators become graph nodes, by kind; `table` has a row for each."""
