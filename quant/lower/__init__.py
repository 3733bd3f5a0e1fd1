"""From a float graph and its ranges to a Program; floats end here."""
