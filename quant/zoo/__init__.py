"""Small trained models that ship with isobit, and the architectures they are made of."""
