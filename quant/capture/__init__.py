"""From a trained torch module to a float graph of known operators."""
