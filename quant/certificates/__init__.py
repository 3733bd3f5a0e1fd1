"""What keeps the states of recurrences inside their limits: found once, checked again by other means."""
